// Builds the page from its panels.

function start() {
  const root = byId("explorer");
  state = consistent(firstChoice());
  const wanted = panels.filter((panel) => !panel.wanted || panel.wanted());
  root.append(navigation(wanted), terms(), controls());
  root.hidden = false;
  for (const panel of wanted) {
    const title = element("h2", { id: `${panel.id}-title` }, panel.title);
    const body = element("div", { class: "panel-body" });
    root.append(
      element("section", { id: panel.id, class: "panel", "aria-labelledby": title.id }, title, body),
    );
    listeners.push(panel.build(body));
  }
  root.append(limits());
  head("tables", "Tables", document.querySelector("main > section"));
  head("pictures", "Pictures", document.querySelector("main > figure"));
  const closed = document.querySelector("main > details.pictures");
  if (closed) closed.id = "pictures";
}

/**
 * Put a heading above the part of the page that is there without scripts.
 * @param {string} id
 * @param {string} title
 * @param {Element | null} first
 */
function head(id, title, first) {
  first?.before(element("h2", { id, class: "part" }, title));
}

/**
 * @param {Panel[]} wanted
 * @returns {HTMLElement} Links to the parts of the page.
 */
function navigation(wanted) {
  const parts = wanted.map(({ id, title }) => [id, title]);
  if (document.querySelector("main > section")) parts.push(["tables", "Tables"]);
  const pictures = document.querySelector("main > details.pictures, main > figure");
  if (pictures) parts.push(["pictures", "Pictures"]);
  const links = parts.map(([id = "", title = ""]) => element("a", { href: `#${id}` }, title));
  if (pictures instanceof HTMLDetailsElement) {
    links.at(-1)?.addEventListener("click", () => {
      pictures.open = true;
    });
  }
  return element("nav", { class: "parts", "aria-label": "Parts of this page" }, ...links);
}

/** @returns {HTMLElement} What the words of the page mean. */
function terms() {
  const list = element("dl");
  for (const [name, meaning] of TERMS) list.append(element("dt", {}, name), element("dd", {}, meaning));
  return element("details", { class: "terms" }, element("summary", {}, "Terms"), list);
}

/** @type {[string, string][]} */
const TERMS = [
  ["ID, OOD", "in distribution: images like those of training, of the classes that the network knows; out of distribution: all others, which a detector is to reject"],
  ["Score, threshold", "a method gives each image a score, larger for images that look ID; an image is accepted if its score is at least the threshold"],
  ["False alarm", "an ID image that is rejected"],
  ["TPR, FPR", "true and false positive rate: the share of positive images above the threshold, and of negative ones; the convention says whether ID or OOD is positive"],
  ["AUROC", "area under the ROC curve: the probability that an ID image has a higher score than an OOD image; 50 % is chance, 100 % is perfect"],
  ["FPR95", "FPR at the threshold where TPR is 95 %; 0 % is best"],
  ["AUPR-in, AUPR-out", "area under the precision-recall curve with ID, or OOD, as the positive class; depends on the numbers of images"],
  ["near, far", "OOD sets whose images resemble ID images, and sets whose images do not; the benchmark says which are which"],
  ["full spectrum", "ID images include covariate-shifted ones, such as corrupted images of the same classes"],
  ["(block 8)", "the method reads block 8 of the network, as chosen by NormRatio or as given"],
];

/** @returns {State} The best method by mean AUROC, and the OOD set that it separates worst. */
function firstChoice() {
  const result = need(payload.results[0]);
  const network = result.networks[0] ?? 0;
  const spectrum = need(need(payload.networks[network]).evaluations[0]).spectrum;
  const columns = result.columns.map((column, at) => ({ column, at }));
  const plain = columns.filter(({ column }) => column.spectrum === spectrum);
  const mean = need(plain.findLast(({ column }) => column.dataset === "") ?? plain.at(-1)).at;
  const order = result.methods.map((_, row) => row);
  order.sort((a, b) => (result.auroc[b]?.[mean] ?? -1) - (result.auroc[a]?.[mean] ?? -1));
  const row = order[0] ?? 0;
  const sets = plain.filter(({ column, at }) => column.dataset && result.auroc[row]?.[at] != null);
  sets.sort((a, b) => need(result.auroc[row]?.[a.at]) - need(result.auroc[row]?.[b.at]));
  return {
    result: 0,
    network,
    spectrum,
    convention: payload.convention,
    metric: "auroc",
    groups: [],
    method: need(result.methods[row]),
    set: sets[0]?.column.dataset ?? "",
    rule: 0.95,
    threshold: 0,
  };
}

/** @type {Record<string, string>} Names of conventions that are not those of methods. */
const CONVENTION_LABELS = {
  featurenorm: "as in the FeatureNorm paper",
  knn: "as in the KNN paper",
  openood: "as in OpenOOD (OOD positive)",
  neutral: "neutral (ID positive)",
};

/** @returns {HTMLElement} The choices that all panels share. */
function controls() {
  const made = element("div", { class: "controls bar-of-controls", role: "group", "aria-label": "What is shown" });
  if (payload.results.length > 1) {
    made.append(chooser("Run", () => payload.results.map((each, at) => [String(at), nameOf(each)]),
      () => String(state.result), (value) => choose({ result: Number(value) })));
  }
  made.append(
    chooser("Method", () => shownEvaluation().methods.map(({ method }) => [method, labelOf(method)]),
      () => state.method, (value) => choose({ method: value })),
    chooser("OOD set",
      () => shownEvaluation().sets.flatMap(({ name, group }, at) =>
        shownCurve().ood[at] ? [[name, group === "ood" ? name : `${name} (${group})`]] : []),
      () => state.set, (value) => choose({ set: value })),
    chooser("Metric", () => Object.entries(METRIC_NAMES), () => state.metric,
      (value) => choose({ metric: /** @type {Metric} */ (value) })),
    chooser("Convention", () => payload.conventions.map(({ name }) => [name, CONVENTION_LABELS[name] ?? name]),
      () => state.convention, (value) => choose({ convention: value })),
  );
  if (payload.networks.some((network) => network.evaluations.length > 1)) {
    made.append(chooser("ID images", () => [["plain", "test images"], ["full", "full spectrum"]],
      () => state.spectrum, (value) => choose({ spectrum: value === "full" ? "full" : "plain" })));
  }
  const groups = [...new Set(payload.networks.flatMap((n) => n.evaluations.flatMap(groupsOf)))];
  if (groups.length > 1) made.append(groupToggles(groups));
  const meaning = element("p", { class: "meaning" });
  const show = () => {
    const { name, description, positive } = shownConvention();
    const rate = positive === "id"
      ? "FPR95 is the share of OOD images that are accepted where 95 % of the ID images are"
      : "FPR95 is the share of ID images that are rejected where 95 % of the OOD images are";
    meaning.textContent = `Convention ${name}: ${rate}. ${description}.`;
  };
  show();
  listeners.push(show);
  made.append(meaning, announcement());
  return made;
}

/** @returns {HTMLElement} What a screen reader says after a choice. */
function announcement() {
  const said = element("p", { class: "unseen", "aria-live": "polite" });
  listeners.push((changed) => {
    if ([...changed].every((each) => each === "threshold" || each === "rule")) return;
    const metrics = shownMetrics().map(([name, value]) => `${name} ${value}`).join(", ");
    said.textContent = `${labelOf(state.method)} on ${state.set}: ${metrics}`;
  });
  return said;
}

/**
 * @param {ResultTable} result
 * @returns {string}
 */
function nameOf({ name, networks }) {
  return networks.length > 1 ? `mean of ${name}` : name;
}

/**
 * @param {string} method
 * @returns {string} Its name as in the table.
 */
function labelOf(method) {
  const result = shownResult();
  return result.labels[result.methods.indexOf(method)] ?? method;
}

/**
 * @param {string[]} groups
 * @returns {HTMLElement}
 */
function groupToggles(groups) {
  const made = element("div", { class: "choice", role: "group", "aria-label": "Groups of OOD sets" });
  for (const group of groups) {
    const toggle = element("button", { type: "button", class: "toggle" }, group);
    const last = () => state.groups.length === 1 && state.groups[0] === group;
    const show = () => {
      toggle.setAttribute("aria-pressed", String(state.groups.includes(group)));
      toggle.setAttribute("aria-disabled", String(last()));
      toggle.title = last() ? "One group is always shown" : "";
    };
    toggle.addEventListener("click", () => {
      if (last()) return;
      choose({ groups: groups.filter((each) => state.groups.includes(each) !== (each === group)) });
    });
    show();
    listeners.push(show);
    made.append(toggle);
  }
  return made;
}

/**
 * Make a labelled choice that follows the state.
 * @param {string} label
 * @param {() => ReadonlyArray<ReadonlyArray<string>>} options Value and text of each.
 * @param {() => string} value
 * @param {(value: string) => void} changed
 * @returns {HTMLElement}
 */
function chooser(label, options, value, changed) {
  const choice = element("select", { id: `choose-${label.toLowerCase().replaceAll(" ", "-")}` });
  let written = "";
  const show = () => {
    const there = options();
    const now = JSON.stringify(there);
    if (now !== written) {
      written = now;
      choice.replaceChildren(...there.map(([each = "", text = ""]) => element("option", { value: each }, text)));
    }
    choice.value = value();
  };
  show();
  listeners.push(show);
  choice.addEventListener("change", () => changed(choice.value));
  return element("span", { class: "choice" }, element("label", { for: choice.id }, label), choice);
}

/** @returns {HTMLElement} What the page leaves out. */
function limits() {
  const list = element("ul", { class: "notes" });
  list.append(element("li", {},
    "colours of the overview go from the best of the methods shown to the value that three quarters of them reach, in each column by itself, and follow the root of the error: of 100 % − AUROC or AUPR, or of FPR95"));
  for (const each of payload.limits) list.append(element("li", {}, each));
  list.append(
    element("li", {},
      "curves and histograms are drawn with Observable Plot 0.6.17 and D3 7.9.0 (ISC licence)"),
  );
  return list;
}

try {
  start();
} catch (error) {
  // The tables are there without it.
  byId("explorer").hidden = true;
  throw error;
}

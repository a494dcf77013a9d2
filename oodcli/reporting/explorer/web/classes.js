// Classes at the threshold: which ID classes are rejected, and what OOD images are taken for.

const SHOWN_CLASSES = 12;

definePanel({
  id: "classes",
  title: "Classes",
  wanted: () =>
    payload.networks.some((network) =>
      network.evaluations.some((each) => each.methods.some((curve) => curve.classes !== null))),
  build(body) {
    const note = element("p", { class: "legend", id: "classes-note" });
    const id = element("div", { id: "id-classes" });
    const ood = element("div", { id: "ood-classes" });
    body.append(note, element("div", { class: "two" }, id, ood));
    const view = { all: false };
    const draw = () => {
      const counts = shownCurve().source.classes;
      if (counts === null) {
        note.textContent = "The classes of these images are not known.";
        id.replaceChildren();
        ood.replaceChildren();
        return;
      }
      const places = unpacked(counts.places);
      const index = indexOf(shownCurve(), state.threshold);
      const at = nearestPlace(places, index);
      note.textContent = placeNote(places, at, index);
      const more = (/** @type {number} */ total) => {
        if (total <= SHOWN_CLASSES) return [];
        const button = element("button", { type: "button", class: "more" },
          view.all ? `Show ${SHOWN_CLASSES} classes` : `Show all ${total} classes`);
        button.addEventListener("click", () => {
          view.all = !view.all;
          draw();
        });
        return [button];
      };
      const rows = idRows(counts, at);
      id.replaceChildren(...classTable("ID classes that are rejected",
        ["Class", "Images", "Rejected", "Share"], view.all ? rows : rows.slice(0, SHOWN_CLASSES)), ...more(rows.length));
      const taken = oodRows(counts, at);
      ood.replaceChildren(...classTable(`What accepted images of ${state.set} are taken for`,
        ["Taken for", "Images", "Accepted", "Of accepted"], view.all ? taken : taken.slice(0, SHOWN_CLASSES)), ...more(taken.length));
    };
    draw();
    return draw;
  },
});

/**
 * @typedef {object} ClassRow
 * @property {string} name
 * @property {number} images
 * @property {number} counted
 * @property {number} share
 */

/**
 * Return the place whose threshold accepts nearly as many ID images.
 * @param {ArrayLike<number>} places
 * @param {number} index
 */
function nearestPlace(places, index) {
  const { id } = shownCurve();
  const wanted = id[index] ?? 0;
  let best = 0;
  for (let at = 0; at < places.length; at += 1) {
    const distance = (/** @type {number} */ place) =>
      Math.abs((id[need(places[place])] ?? 0) - wanted) + (places[place] === index ? -0.5 : 0);
    if (distance(at) < distance(best)) best = at;
  }
  return best;
}

/**
 * @param {ArrayLike<number>} places
 * @param {number} at
 * @param {number} index
 */
function placeNote(places, at, index) {
  const evaluation = shownEvaluation();
  const { id } = shownCurve();
  const place = need(places[at]);
  const where = `where ${percent((id[place] ?? 0) / evaluation.n_id)} % of the ID images are accepted`;
  const by = evaluation.id_by === "prediction" ? "; ID classes are predicted ones, since labels are not known" : "";
  return place === index ? `At the threshold, ${where}${by}.` : `At the nearest threshold that is counted by class, ${where}${by}.`;
}

/**
 * @param {ClassCounts} counts
 * @param {number} at
 * @returns {ClassRow[]} The class with the largest rejected share first.
 */
function idRows(counts, at) {
  const totals = shownEvaluation().id_classes;
  if (counts.id_accepted === null || totals === null) return [];
  const accepted = unpacked(counts.id_accepted);
  return totals
    .map((images, index) => {
      const rejected = images - need(accepted[at * totals.length + index]);
      return { name: className(index), images, counted: rejected, share: images ? rejected / images : 0 };
    })
    .filter((row) => row.images > 0)
    .sort((a, b) => b.share - a.share);
}

/**
 * @param {ClassCounts} counts
 * @param {number} at
 * @returns {ClassRow[]} The class that most accepted images are taken for first.
 */
function oodRows(counts, at) {
  const set = need(shownEvaluation().sets[shownSet()]);
  const packed = counts.ood_accepted[shownSet()];
  if (!packed || set.classes === null || set.taken === null) return [];
  const { classes, taken } = set;
  const accepted = unpacked(packed);
  const own = classes.map((_, index) => need(accepted[at * classes.length + index]));
  const curve = shownCurve();
  const total = curve.ood[shownSet()]?.[need(unpacked(counts.places)[at])] ?? 0;
  const rows = classes
    .map((index, column) => ({
      name: className(index),
      images: need(taken[column]),
      counted: need(own[column]),
      share: total ? need(own[column]) / total : 0,
    }))
    .sort((a, b) => b.counted - a.counted);
  const images = set.n - taken.reduce((sum, each) => sum + each, 0);
  const others = total - own.reduce((sum, each) => sum + each, 0);
  return images ? [...rows, { name: "other classes", images, counted: others, share: total ? others / total : 0 }] : rows;
}

/** @param {number} index */
function className(index) {
  return shownNetwork().classes[index] ?? `class ${index}`;
}

/**
 * @param {string} caption
 * @param {string[]} headings
 * @param {ClassRow[]} rows
 * @returns {HTMLElement[]}
 */
function classTable(caption, headings, rows) {
  const title = element("h3", {}, caption);
  if (!rows.length) return [title, element("p", { class: "legend" }, "Not known.")];
  const table = element("table", { class: "compact", "aria-label": caption },
    element("thead", {}, element("tr", {}, ...headings.map((name, at) =>
      element("th", { scope: "col", class: `${at ? "number" : ""}${at === 1 ? " extra" : ""}` }, name)), element("td", { class: "extra" }))));
  const body = table.createTBody();
  for (const row of rows) {
    body.insertRow().append(
      element("th", { scope: "row", title: row.name }, row.name),
      element("td", { class: "number extra" }, counted(row.images)),
      element("td", { class: "number" }, counted(row.counted)),
      element("td", { class: "number" }, `${percent(row.share)} %`),
      element("td", { class: "extra", "aria-hidden": "true" }, meter(row.share)),
    );
  }
  return [title, element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, table)];
}

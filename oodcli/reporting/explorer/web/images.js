// Pictures of images, and the dialog that shows one of them large.

/** @type {Map<string, Promise<HTMLImageElement>>} */
const decodedSheets = new Map();

/**
 * @param {string} file
 * @returns {Promise<HTMLImageElement>}
 */
function decodedSheet(file) {
  const known = decodedSheets.get(file);
  if (known) return known;
  const image = new Image();
  image.src = `data:image/webp;base64,${file}`;
  const ready = image.decode().then(() => image);
  decodedSheets.set(file, ready);
  return ready;
}

/**
 * Return a picture, which is drawn as soon as its sheet is decoded.
 * @param {Sheets} sheets
 * @param {number} number
 * @param {string} label What a screen reader says; empty where the text beside it says it.
 * @returns {HTMLElement}
 */
function picture(sheets, number, label) {
  if (number >= sheets.count) return element("span", { class: "no-picture" }, "no picture");
  const { width, height, columns, per_sheet: perSheet } = sheets;
  const canvas = element("canvas", {
    width, height, class: Math.max(width, height) < 64 ? "picture pixels" : "picture",
    ...(label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" }),
  });
  const at = number % perSheet;
  void decodedSheet(need(sheets.files[Math.floor(number / perSheet)])).then((sheet) => {
    const left = (at % columns) * width;
    const top = Math.floor(at / columns) * height;
    canvas.getContext("2d")?.drawImage(sheet, left, top, width, height, 0, 0, width, height);
  });
  return canvas;
}

/** @type {Map<Packed, ArrayLike<number>>} */
const unpackedOnce = new Map();

/**
 * Unpack numbers that are used again and again.
 * @param {Packed} text
 * @returns {ArrayLike<number>}
 */
function numbers(text) {
  let found = unpackedOnce.get(text);
  if (!found) {
    found = unpacked(text);
    unpackedOnce.set(text, found);
  }
  return found;
}

/**
 * Return the name of a class; null where there is none.
 * @param {number} network
 * @param {number | null} index
 */
function classOf(network, index) {
  return index === null || index < 0 ? null : (need(payload.networks[network]).classes[index] ?? null);
}

/**
 * Return an image of a strip, with all that is known about it.
 * @param {ImageStrip} strip
 * @param {number} at
 * @returns {ShownImage}
 */
function imageOfStrip(strip, at) {
  const { images, methods, network } = strip;
  const source = need(strip.sets[numbers(images.sets)[at] ?? 0]);
  const predicted = strip.predicted === null ? null : need(numbers(strip.predicted)[at]);
  return {
    network,
    sheets: images.pictures,
    number: at,
    name: need(images.names[at]),
    set: source.name,
    isId: source.group === "id",
    truth: classOf(network, need(numbers(images.labels)[at]) - 1),
    predicted: classOf(network, predicted),
    scores: () => {
      const scores = numbers(strip.scores);
      const percentiles = numbers(strip.percentiles);
      const thresholds = numbers(strip.thresholds);
      return methods.map((method, column) => {
        const score = need(scores[at * methods.length + column]);
        return {
          method,
          score: Number.isNaN(score) ? null : score,
          percentile: Number.isNaN(score) ? null : need(percentiles[at * methods.length + column]) / 10_000,
          accepted: Number.isNaN(score) ? null : score >= Math.fround(need(thresholds[column])),
        };
      });
    },
    nearest: () => nearestOf(strip, at),
  };
}

/**
 * @param {ImageStrip} strip
 * @param {number} at
 * @returns {NearImage[]}
 */
function nearestOf(strip, at) {
  const training = strip.training;
  if (training === null) return [];
  const nearest = numbers(training.nearest);
  const k = nearest.length / strip.images.names.length;
  return Array.from({ length: k }, (_, place) => {
    const number = need(nearest[at * k + place]);
    return {
      sheets: training.pictures,
      number,
      name: need(training.names[number]),
      label: classOf(strip.network, need(numbers(training.labels)[number]) - 1),
      distance: need(numbers(training.distances)[at * k + place]),
    };
  });
}

/** @type {Map<ImageStrip, Map<string, number>>} Numbers of images by set and row. */
const placesInStrips = new Map();

/**
 * Return an image as the strip of its network knows it, with scores; null where it does not.
 * @param {number} network
 * @param {string} set
 * @param {number} row
 * @returns {ShownImage | null}
 */
function imageInStrip(network, set, row) {
  const strip = payload.images?.strips.find((each) => each.network === network);
  if (!strip) return null;
  let places = placesInStrips.get(strip);
  if (!places) {
    const [sets, rows] = [numbers(strip.images.sets), numbers(strip.images.rows)];
    places = new Map(strip.images.names.map((_, at) => [`${rows[at]}/${need(strip.sets[need(sets[at])]).name}`, at]));
    placesInStrips.set(strip, places);
  }
  const at = places.get(`${row}/${set}`);
  return at === undefined ? null : imageOfStrip(strip, at);
}

/**
 * Return what an image is in words.
 * @param {ShownImage} image
 */
function spokenImage(image) {
  const words = [`${image.name} of ${image.set} (${image.isId ? "ID" : "OOD"})`];
  if (image.truth !== null) words.push(`is ${image.truth}`);
  if (image.predicted !== null) words.push(`predicted ${image.predicted}`);
  return words.join(", ");
}

/**
 * Return a button with the picture of an image, which opens it.
 * @param {ShownImage} image
 * @param {string[]} facts What the caption says beside the classes.
 * @param {() => void} open
 * @returns {HTMLElement}
 */
function imageButton(image, facts, open) {
  const short = (/** @type {string} */ name) => name.replace(/ \(n\d{8}\)$/, ""); // without the wnid, which the dialog has
  const classes = [...(image.truth === null ? [] : [short(image.truth)]), ...(image.predicted === null ? [] : [`→ ${short(image.predicted)}`])];
  const lines = [...facts, ...classes].map((line) => element("span", { class: "caption" }, line));
  const button = element("button", { type: "button", class: "thumb", "aria-label": [spokenImage(image), ...facts].join(", "), title: image.name },
    picture(image.sheets, image.number, ""), ...lines);
  button.addEventListener("click", open);
  return element("li", {}, button);
}

/**
 * Move the focus among the buttons of a list with the arrow keys.
 * @param {HTMLElement} list
 */
function arrowsMoveFocus(list) {
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const buttons = [...list.querySelectorAll("button")];
    const at = buttons.indexOf(/** @type {HTMLButtonElement} */ (event.target));
    const next = step === undefined || at < 0 ? undefined : buttons[at + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
}

/** @type {{ dialog: HTMLDialogElement, show: (images: ReadonlyArray<ShownImage>, at: number) => void } | null} */
let imageDialog = null;

/**
 * Open an image large; the others of its list are reached with the arrow keys.
 * @param {ReadonlyArray<ShownImage>} images
 * @param {number} at
 */
function openImage(images, at) {
  imageDialog ??= madeDialog();
  imageDialog.show(images, at);
}

function madeDialog() {
  const title = element("h2", { id: "image-title" });
  const body = element("div", { class: "large" });
  const where = element("span", { class: "where", "aria-live": "polite" });
  const [previous, next, close] = ["Previous", "Next", "Close"].map((text) =>
    element("button", { type: "button", class: "more" }, text));
  const bar = element("div", { class: "controls" }, need(previous), need(next), where, need(close));
  const dialog = element("dialog", { class: "image-dialog", "aria-labelledby": title.id }, title, bar, body);
  byId("explorer").append(dialog);
  /** @type {ReadonlyArray<ShownImage>} */
  let images = [];
  let current = 0;
  const draw = () => {
    const image = need(images[current]);
    title.textContent = image.name;
    where.textContent = images.length > 1 ? `image ${current + 1} of ${images.length}` : "";
    need(previous).disabled = current === 0;
    need(next).disabled = current === images.length - 1;
    for (const each of [previous, next]) need(each).hidden = images.length === 1;
    body.replaceChildren(...largeView(image));
    dialog.scrollTop = 0;
  };
  const move = (/** @type {number} */ step) => {
    if (images[current + step] === undefined) return;
    current += step;
    draw();
  };
  need(previous).addEventListener("click", () => move(-1));
  need(next).addEventListener("click", () => move(1));
  need(close).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    move(step);
  });
  return {
    dialog,
    show: (/** @type {ReadonlyArray<ShownImage>} */ list, /** @type {number} */ at) => {
      images = list;
      current = at;
      draw();
      dialog.showModal();
      need(close).focus();
    },
  };
}

/**
 * @param {ShownImage} image
 * @returns {HTMLElement[]}
 */
function largeView(image) {
  /** @type {[string, string | null][]} */
  const facts = [
    ["Data set", `${image.set} (${image.isId ? "ID" : "OOD"})`],
    ["Class", image.truth],
    ["Predicted class", image.predicted],
  ];
  const list = element("dl", { class: "readout" });
  for (const [name, value] of facts) {
    if (value !== null) list.append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  }
  /** @type {HTMLElement[]} */
  const parts = [element("div", { class: "large-picture" }, picture(image.sheets, image.number, spokenImage(image)), list)];
  const near = image.nearest();
  if (near.length) {
    const items = near.map((each) =>
      element("li", {}, picture(each.sheets, each.number, ""),
        element("span", { class: "caption" }, each.label ?? each.name),
        element("span", { class: "caption" }, `d² ${each.distance.toFixed(3)}`)));
    parts.push(element("h3", {}, "Nearest training images"),
      element("p", { class: "meaning" }, "d² is the squared distance of features that are scaled to length 1: 0 for the same direction, 2 for a right angle."),
      element("ul", { class: "thumbs" }, ...items));
  }
  const scores = image.scores();
  if (scores.length) parts.push(element("h3", {}, "Scores of the methods"), ...scoreTable(image, scores));
  return parts;
}

const PERCENTILE_STEP = 0.005; // of the images of maps

/**
 * Return whether an image is accepted at a threshold, by its rounded percentile.
 * @param {number | null} percentile
 * @param {number} below Share of the ID images below the threshold.
 * @returns {boolean | null} Null where rounding leaves it open.
 */
function acceptedAt(percentile, below) {
  return percentile === null || Math.abs(percentile - below) <= PERCENTILE_STEP / 2 ? null : percentile > below;
}

/** @returns {number | null} Share of the ID test images below the chosen threshold. */
function shareBelow() {
  if (state.spectrum !== "plain") return null;
  const curve = shownCurve();
  return 1 - (curve.id[indexOf(curve, state.threshold)] ?? 0) / shownEvaluation().n_id;
}

/**
 * Return the verdict of a method: of the chosen one at the chosen threshold, of others at 95 % TPR.
 * @param {ShownImage} image
 * @param {MethodScore} of
 */
function verdictOf(image, of) {
  let { accepted } = of;
  if (of.method === state.method && image.network === state.network) {
    const below = shareBelow();
    accepted = of.score !== null ? of.score >= Math.fround(state.threshold)
      : below === null ? null : acceptedAt(of.percentile, below);
  }
  if (of.percentile === null) return "–";
  return accepted === null ? "near the threshold" : accepted ? "ID" : "OOD";
}

/**
 * Return what the columns of the scores of an image mean.
 * @param {ShownImage} image
 * @param {boolean} scored
 */
function aboutScores(image, scored) {
  const own = image.network === state.network;
  const below = shareBelow();
  const said = [own
    ? `Verdict of ${labelOf(state.method)} at the chosen threshold${below === null ? "" : ` (${percent(1 - below, 1)} % TPR)`}, of the other methods at 95 % TPR.`
    : `Verdicts at 95 % TPR; the chosen threshold is that of ${shownNetwork().name}.`];
  if (!scored) said.push("The page has scores and nearest training images of the images under Images only; of this one it has percentiles, in steps of 0.5 %.");
  return said.join(" ");
}

/**
 * @param {ShownImage} image
 * @param {ReadonlyArray<MethodScore>} scores
 * @returns {HTMLElement[]}
 */
function scoreTable(image, scores) {
  const scored = scores.some((each) => each.score !== null);
  const own = scores.filter((each) => each.method === state.method);
  const rows = [...own, ...scores.filter((each) => each.method !== state.method)].map((each) =>
    element("tr", {},
      element("th", { scope: "row" }, labelOf(each.method)),
      ...(scored ? [element("td", { class: "number" }, each.score === null ? "–" : String(Number(each.score.toPrecision(4))))] : []),
      element("td", { class: "number" }, each.percentile === null ? "–" : `${percent(each.percentile, 1)} %`),
      element("td", {}, verdictOf(image, each))));
  const head = ["Method", ...(scored ? ["Score"] : []), "ID images below", "Verdict"].map((text, at, all) =>
    element("th", { scope: "col", ...(at > 0 && at < all.length - 1 ? { class: "number" } : {}) }, text));
  return [
    element("p", { class: "meaning" }, aboutScores(image, scored)),
    element("div", { class: "scroll scores", role: "region", tabindex: "0", "aria-label": "Scores of the methods" },
      element("table", { class: "compact" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))),
  ];
}

// Classes at the threshold: which ID classes are rejected, and what OOD images are taken for.

const SHOWN_CLASSES = 12;
const LEAST_FOR_SHARES = 10; // images of a class whose rejected share says something

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
      const more = (/** @type {number} */ total, /** @type {string} */ what) => {
        if (total <= SHOWN_CLASSES) return [];
        const button = element("button", { type: "button", class: "more" },
          view.all ? `Show ${SHOWN_CLASSES} classes` : `Show all ${what}`);
        button.addEventListener("click", () => {
          view.all = !view.all;
          draw();
        });
        return [button];
      };
      const rows = idRows(counts, at);
      const few = Math.max(0, ...rows.map(({ images }) => images)) < LEAST_FOR_SHARES;
      id.replaceChildren(
        element("h3", {}, "ID classes that are rejected"),
        ...(few && rows.length ? [element("p", { class: "legend" }, fewImages(rows))] : []),
        ...classTable("ID classes that are rejected", idColumns(few), view.all ? rows : rows.slice(0, SHOWN_CLASSES)),
        ...more(rows.length, `${rows.length} classes`));
      const { named, others } = oodRows(counts, at);
      const caption = `What images of ${state.set} are taken for`;
      ood.replaceChildren(
        element("h3", {}, caption),
        ...classTable(caption, oodColumns(),
          [...(view.all ? named : named.slice(0, SHOWN_CLASSES)), ...others]),
        ...more(named.length, others.length ? `${named.length} classes and others` : `${named.length} classes`));
    };
    draw();
    return draw;
  },
});

/**
 * @typedef {object} ClassRow
 * @property {string} name
 * @property {number} images
 * @property {number} counted Rejected ID images, or accepted OOD images.
 * @property {number} share Of the images of this class, or of all images of the OOD set.
 * @property {number} ofCounted Share of all that are counted.
 */

/**
 * @typedef {object} ClassColumn
 * @property {string} name
 * @property {boolean} extra Whether phones leave it out.
 * @property {(row: ClassRow) => string} text
 */

/**
 * @param {ClassRow[]} rows
 * @returns {string} Why there are no shares.
 */
function fewImages(rows) {
  const images = rows.map((row) => row.images);
  const [least, most] = [Math.min(...images), Math.max(...images)];
  const range = least === most ? `${most}` : `${least} to ${most}`;
  return `${range} image${most === 1 ? "" : "s"} per class: too few for shares.`;
}

/**
 * @param {boolean} few Whether classes have too few images for shares.
 * @returns {ClassColumn[]}
 */
function idColumns(few) {
  const columns = [
    { name: "Images", extra: true, text: (/** @type {ClassRow} */ row) => counted(row.images) },
    { name: "Rejected", extra: false, text: (/** @type {ClassRow} */ row) => counted(row.counted) },
  ];
  const share = { name: "Share", extra: false, text: (/** @type {ClassRow} */ row) => `${percent(row.share)} %` };
  return few ? columns : [...columns, share];
}

/** @returns {ClassColumn[]} */
function oodColumns() {
  return [
    { name: "Images", extra: false, text: ({ images }) => counted(images) },
    { name: "Of all", extra: false, text: ({ share }) => `${percent(share)} %` },
    { name: "Accepted", extra: false, text: (row) => counted(row.counted) },
    { name: "Of accepted", extra: true, text: ({ ofCounted }) => `${percent(ofCounted)} %` },
  ];
}

/**
 * Return the place whose threshold accepts nearly as many ID images; -1 where no image is accepted.
 * @param {ArrayLike<number>} places
 * @param {number} index
 */
function nearestPlace(places, index) {
  const { id } = shownCurve();
  if (index >= id.length) return -1;
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
  if (at < 0) return "No image is accepted at the threshold.";
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
      const rejected = images - (at < 0 ? 0 : need(accepted[at * totals.length + index]));
      return { name: className(index), images, counted: rejected, share: images ? rejected / images : 0, ofCounted: 0 };
    })
    .filter((row) => row.images > 0)
    .sort((a, b) => b.share - a.share);
}

/**
 * @param {ClassCounts} counts
 * @param {number} at
 * @returns {{ named: ClassRow[], others: ClassRow[] }} The class that most accepted images are taken
 *   for first, then the one that most images are taken for; and one row of all other classes, if any.
 */
function oodRows(counts, at) {
  const set = need(shownEvaluation().sets[shownSet()]);
  const packed = counts.ood_accepted[shownSet()];
  if (!packed || set.classes === null || set.taken === null) return { named: [], others: [] };
  const { classes, taken } = set;
  const accepted = unpacked(packed);
  const own = classes.map((_, index) => at < 0 ? 0 : need(accepted[at * classes.length + index]));
  const total = shownCurve().ood[shownSet()]?.[unpacked(counts.places)[at] ?? -1] ?? 0;
  const row = (/** @type {string} */ name, /** @type {number} */ images, /** @type {number} */ found) =>
    ({ name, images, counted: found, share: images / set.n, ofCounted: total ? found / total : 0 });
  const named = classes
    .map((index, column) => row(className(index), need(taken[column]), need(own[column])))
    .sort((a, b) => b.counted - a.counted || b.images - a.images);
  const images = set.n - taken.reduce((sum, each) => sum + each, 0);
  const others = total - own.reduce((sum, each) => sum + each, 0);
  return { named, others: images ? [row("other classes", images, others)] : [] };
}

/** @param {number} index */
function className(index) {
  return shownNetwork().classes[index] ?? `class ${index}`;
}

/**
 * @param {string} caption
 * @param {ClassColumn[]} columns
 * @param {ClassRow[]} rows
 * @returns {HTMLElement[]}
 */
function classTable(caption, columns, rows) {
  if (!rows.length) return [element("p", { class: "legend" }, "Not known.")];
  const bars = columns.at(-1)?.name === "Share";
  const kind = (/** @type {ClassColumn} */ { extra }) => `number${extra ? " extra" : ""}`;
  const table = element("table", { class: "compact", "aria-label": caption },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Class"),
      ...columns.map((column) => element("th", { scope: "col", class: kind(column) }, column.name)),
      ...(bars ? [element("td", { class: "extra" })] : []))));
  const body = table.createTBody();
  for (const row of rows) {
    body.insertRow().append(
      element("th", { scope: "row", title: row.name }, row.name),
      ...columns.map((column) => element("td", { class: kind(column) }, column.text(row))),
      ...(bars ? [element("td", { class: "extra", "aria-hidden": "true" }, meter(row.share))] : []),
    );
  }
  return [element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": caption }, table)];
}

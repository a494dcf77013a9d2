// How the images of maps are coloured and marked.

/**
 * How the images of a map are coloured.
 * @typedef {object} Colouring
 * @property {() => string} label
 * @property {ReadonlyArray<string>} names Of its categories.
 * @property {(category: number) => string} colour Name of a colour of the page.
 * @property {(view: MapView) => (at: number) => number} of Category of an image.
 */

const MAP_SYMBOLS = [d3.symbolCircle, d3.symbolSquare, d3.symbolTriangle, d3.symbolDiamond, d3.symbolCross, d3.symbolStar, d3.symbolWye];
const MAP_COLOURS = 12;
const MAP_GREY = "--cat-none";
const BANDS = [0.01, 0.05, 0.25, 0.5];

/**
 * @param {FeatureMap} map
 * @returns {Map<string, Colouring>}
 */
function colouringsOf({ sets, images, views }) {
  const ofSet = numbers(images.sets);
  const labels = numbers(images.labels);
  const classes = need(payload.networks[need(views[0]).network]).classes;
  /** @type {Map<string, Colouring>} */
  const found = new Map();
  found.set("set", {
    label: () => "data set",
    names: sets.map((each) => `${each.name} (${each.group === "id" ? "ID" : "OOD"})`),
    colour: categoryColour,
    of: () => (at) => need(ofSet[at]),
  });
  if (Array.from(labels).some((each) => each > 0)) found.set("class", classColouring("class", classes, "OOD", [labels], () => labels));
  const predicted = new Map(views.flatMap((view) =>
    (view.predicted === null ? [] : [[view, Array.from(numbers(view.predicted), (each) => each + 1)]])));
  if (predicted.size === views.length) {
    found.set("predicted", classColouring("predicted class", classes, "", [...predicted.values()], (view) => need(predicted.get(view))));
  }
  found.set("percentile", {
    label: () => `percentile by ${labelOf(state.method)}` + (views.some((view) => view.methods.includes(state.method)) ? "" : " (not in this map)"),
    names: ["below 1 % of the ID images", "1 to 5 %", "5 to 25 %", "25 to 50 %", "above 50 %", "no score"],
    colour: (category) => (category > BANDS.length ? MAP_GREY : `--band-${category}`),
    of: (view) => {
      const column = view.methods.indexOf(state.method);
      const own = numbers(view.percentiles);
      return (at) => {
        const halves = column < 0 ? 255 : need(own[at * view.methods.length + column]);
        return halves === 255 ? BANDS.length + 1 : BANDS.filter((band) => halves / 200 >= band).length;
      };
    },
  });
  return found;
}

/**
 * Colour images by class.
 * @param {string} label
 * @param {ReadonlyArray<string>} classes
 * @param {string} none Name of the category of images without a class, which is grey.
 * @param {ReadonlyArray<ArrayLike<number>>} every Class plus 1 of the images, 0 without one, of all maps.
 * @param {(view: MapView) => ArrayLike<number>} of The same of one map.
 * @returns {Colouring}
 */
function classColouring(label, classes, none, every, of) {
  const order = [...new Set(every.flatMap((each) => Array.from(each)))].filter((each) => each > 0).sort((a, b) => a - b);
  const places = new Map(order.map((each, at) => [each, at]));
  return {
    label: () => label,
    names: [...order.map((each) => classes[each - 1] ?? `class ${each - 1}`), ...(none ? [none] : [])],
    colour: (category) => (category < order.length ? categoryColour(category) : MAP_GREY),
    of: (view) => {
      const labels = of(view);
      return (at) => places.get(need(labels[at])) ?? order.length;
    },
  };
}

/** @param {number} category */
function categoryColour(category) {
  return `--cat-${category % MAP_COLOURS}`;
}

/**
 * @param {Colouring} colouring
 * @param {number} category
 */
function symbolKey(colouring, category) {
  const key = svg("svg", { class: "map-symbol", width: 16, height: 16, viewBox: "-8 -8 16 16", "aria-hidden": "true" });
  const symbol = need(MAP_SYMBOLS[category % MAP_SYMBOLS.length]);
  key.append(svg("path", { d: need(d3.symbol(symbol, 80)()), fill: `var(${colouring.colour(category)})` }));
  return key;
}

// Maps of features, of one run or of two side by side: hover, lasso, filter, list.

/**
 * How the images of a map are coloured.
 * @typedef {object} Colouring
 * @property {string} label
 * @property {string[]} names Of its categories.
 * @property {(view: MapView) => (at: number) => number} of Category of an image.
 */

const MAP_SYMBOLS = ["circle", "square", "triangle", "diamond", "cross", "star", "wye"];
const MAP_COLOURS = 8;
const MAP_CATEGORIES = 24;
const MAP_LISTED = 60;
const MAP_HEIGHT = 600;
const BANDS = [0.01, 0.05, 0.25, 0.5];

definePanel({
  id: "map",
  title: "Map of features",
  wanted: () => Boolean(payload.images?.map),
  build(body) {
    const map = new MapPanel(need(need(payload.images).map));
    body.append(...map.parts());
    map.draw();
    return (changed) => {
      if (changed.has("method") && map.colouring === "percentile") map.draw();
    };
  },
});

class MapPanel {
  /** @param {FeatureMap} map */
  constructor(map) {
    this.map = map;
    this.count = map.images.names.length;
    this.kind = need(need(map.views[0]).projections.at(-1)).kind;
    this.colouring = "set";
    /** @type {Map<string, Set<number>>} Hidden categories by colouring. */
    this.hidden = new Map();
    /** @type {number[]} */
    this.chosen = [];
    /** @type {number | null} */
    this.current = null;
    this.shown = MAP_LISTED;
    this.views = map.views.map((view) => new MapFigure(this, view));
    this.legend = element("div", { class: "map-legend", role: "group", "aria-label": "Categories that are shown" });
    this.only = element("select", {});
    this.status = element("p", { class: "meaning", "aria-live": "polite" });
    this.result = element("div", { class: "image-list" });
    this.lasso = element("button", { type: "button", class: "toggle", "aria-pressed": String(!matchMedia("(pointer: coarse)").matches) }, "Lasso");
  }

  /** @returns {HTMLElement[]} */
  parts() {
    const kinds = need(this.map.views[0]).projections.map((each) => each.kind);
    const toggles = kinds.map((kind) => {
      const toggle = element("button", { type: "button", class: "toggle", "aria-pressed": String(kind === this.kind) }, kind === "pca" ? "PCA" : "t-SNE");
      toggle.addEventListener("click", () => {
        this.kind = kind;
        for (const [at, each] of toggles.entries()) each.setAttribute("aria-pressed", String(kinds[at] === kind));
        this.draw();
      });
      return toggle;
    });
    const colours = chooser("Colour by", () => [...this.colourings()].map(([key, each]) => [key, each.label]), () => this.colouring, (value) => {
      this.colouring = value;
      this.draw();
    });
    this.only.addEventListener("change", () => {
      const all = [...this.names().keys()];
      const value = this.only.value;
      this.hidden.set(this.colouring, new Set(value === "" ? [] : all.filter((each) => String(each) !== value)));
      this.draw();
    });
    this.lasso.addEventListener("click", () => {
      this.lasso.setAttribute("aria-pressed", String(!this.lassoes));
      for (const each of this.views) each.chart.classList.toggle("lassoes", this.lassoes);
    });
    const list = element("button", { type: "button", class: "more" }, "List the images shown");
    list.addEventListener("click", () => this.list(this.everyShown()));
    const reset = element("button", { type: "button", class: "more" }, "Show all");
    reset.addEventListener("click", () => {
      this.hidden.clear();
      this.list([]);
      this.draw();
    });
    return [
      element("div", { class: "controls" },
        element("div", { class: "choice", role: "group", "aria-label": "Projection" }, ...toggles),
        colours, element("label", { class: "choice" }, "Only ", this.only), this.lasso, list, reset),
      this.legend,
      element("div", { class: "two" }, ...this.views.map((each) => each.figure)),
      this.status,
      this.result,
    ];
  }

  get lassoes() {
    return this.lasso.getAttribute("aria-pressed") === "true";
  }

  /** @returns {Map<string, Colouring>} */
  colourings() {
    const { sets, images, views } = this.map;
    const ofSet = numbers(images.sets);
    const labels = numbers(images.labels);
    const classes = need(payload.networks[need(views[0]).network]).classes;
    /** @type {Map<string, Colouring>} */
    const found = new Map();
    found.set("set", {
      label: "data set",
      names: sets.map((each) => `${each.name} (${each.group === "id" ? "ID" : "OOD"})`),
      of: () => (at) => need(ofSet[at]),
    });
    if (Array.from(labels).some((each) => each > 0)) found.set("class", classColouring("class", classes, "OOD", labels));
    const predicted = views.map((each) => each.predicted);
    if (predicted.every((each) => each !== null)) {
      const first = Array.from(numbers(need(predicted[0])), (each) => each + 1);
      const colouring = classColouring("predicted class", classes, "", first);
      found.set("predicted", {
        ...colouring,
        of: (view) => {
          const own = numbers(need(view.predicted));
          const category = need(colouring.category);
          return (at) => category(need(own[at]) + 1);
        },
      });
    }
    found.set("percentile", {
      label: `percentile by ${labelOf(this.methodOf(need(views[0])))}`,
      names: ["below 1 % of the ID images", "1 to 5 %", "5 to 25 %", "25 to 50 %", "above 50 %", "no score"],
      of: (view) => {
        const column = view.methods.indexOf(this.methodOf(view));
        const own = numbers(view.percentiles);
        return (at) => {
          const halves = need(own[at * view.methods.length + column]);
          return halves === 255 ? BANDS.length + 1 : BANDS.filter((band) => halves / 200 >= band).length;
        };
      },
    });
    return found;
  }

  /**
   * The chosen method, or the first if the map has no percentiles of that.
   * @param {MapView} view
   */
  methodOf(view) {
    return view.methods.includes(state.method) ? state.method : need(view.methods[0]);
  }

  /** @returns {string[]} Names of the categories of the chosen colouring. */
  names() {
    return need(this.colourings().get(this.colouring)).names;
  }

  /**
   * @param {MapView} view
   * @returns {(at: number) => boolean}
   */
  isShown(view) {
    const tests = [...this.hidden].flatMap(([key, hidden]) => {
      const colouring = this.colourings().get(key);
      if (!hidden.size || !colouring) return [];
      const of = colouring.of(view);
      return [(/** @type {number} */ at) => !hidden.has(of(at))];
    });
    return (at) => tests.every((test) => test(at));
  }

  /** @returns {number[]} */
  everyShown() {
    const tests = this.map.views.map((view) => this.isShown(view));
    return Array.from({ length: this.count }, (_, at) => at).filter((at) => tests.some((test) => test(at)));
  }

  draw() {
    const colouring = need(this.colourings().get(this.colouring));
    const hidden = this.hidden.get(this.colouring) ?? new Set();
    const of = colouring.of(need(this.map.views[0]));
    const counts = new Array(colouring.names.length).fill(0);
    for (let at = 0; at < this.count; at += 1) counts[of(at)] += 1;
    this.legend.replaceChildren(...colouring.names.flatMap((name, category) => (counts[category] ? [this.key(name, category, counts[category], hidden)] : [])));
    const solo = colouring.names.filter((_, category) => !hidden.has(category));
    this.only.replaceChildren(
      element("option", { value: "" }, "all"),
      ...colouring.names.map((name, category) => element("option", { value: category, selected: hidden.size > 0 && solo.length === 1 && solo[0] === name }, name)));
    for (const each of this.views) each.draw(colouring);
    this.mark();
    this.say();
  }

  /**
   * @param {string} name
   * @param {number} category
   * @param {number} count
   * @param {Set<number>} hidden
   */
  key(name, category, count, hidden) {
    const button = element("button", { type: "button", class: "toggle map-key", "aria-pressed": String(!hidden.has(category)) },
      symbolKey(this.colouring, category), `${name} `, element("span", { class: "count" }, counted(count)));
    button.addEventListener("click", () => {
      const now = new Set(hidden);
      if (!now.delete(category)) now.add(category);
      this.hidden.set(this.colouring, now);
      const place = [...this.legend.children].indexOf(button);
      this.draw();
      /** @type {HTMLElement | undefined} */ (this.legend.children[place])?.focus();
    });
    return button;
  }

  say() {
    const shown = this.everyShown().length;
    this.status.textContent =
      `${counted(shown)} of ${counted(this.count)} images shown. Draw around images to list them` +
      (this.lassoes ? "" : " (Lasso must be on)") +
      ", or choose categories and list the images shown; with the map focused, arrow keys move from image to image and Enter opens one.";
  }

  /**
   * Make an image the current one on all maps, and say what it is.
   * @param {number | null} at
   */
  point(at) {
    this.current = at;
    for (const each of this.views) each.ring(at);
  }

  mark() {
    for (const each of this.views) {
      each.fade(this.chosen);
      each.ring(this.current);
    }
  }

  /**
   * @param {number} at
   * @param {MapView} [view]
   * @returns {ShownImage}
   */
  image(at, view = need(this.map.views[0])) {
    const { images, sets } = this.map;
    const source = need(sets[need(numbers(images.sets)[at])]);
    const predicted = view.predicted === null ? null : need(numbers(view.predicted)[at]);
    const percentiles = numbers(view.percentiles);
    return {
      sheets: images.pictures,
      number: at,
      name: need(images.names[at]),
      set: source.name,
      isId: source.group === "id",
      truth: classOf(view.network, need(numbers(images.labels)[at]) - 1),
      predicted: classOf(view.network, predicted),
      scores: () => view.methods.map((method, column) => {
        const halves = need(percentiles[at * view.methods.length + column]);
        const percentile = halves === 255 ? null : halves / 200;
        return { method, score: null, percentile, accepted: percentile === null ? null : percentile >= 0.05 };
      }),
      nearest: () => [],
    };
  }

  /**
   * List images below the maps.
   * @param {number[]} chosen
   */
  list(chosen) {
    this.chosen = chosen;
    this.shown = MAP_LISTED;
    this.mark();
    this.drawList();
  }

  drawList() {
    if (!this.chosen.length) {
      this.result.replaceChildren();
      return;
    }
    const images = this.chosen.map((at) => this.image(at));
    const items = images.slice(0, this.shown).map((image, place) => {
      const caption = [image.isId ? (image.truth ?? image.set) : image.set];
      if (image.predicted !== null) caption.push(`→ ${image.predicted}`);
      const item = imageButton(image, caption, () => openImage(images, place));
      const over = () => this.point(need(this.chosen[place]));
      item.addEventListener("pointerenter", over);
      item.addEventListener("focusin", over);
      return item;
    });
    const list = element("ul", { class: "thumbs" }, ...items);
    arrowsMoveFocus(list);
    const title = element("h3", { "aria-live": "polite" }, summary(images));
    const left = images.length - items.length;
    const more = element("button", { type: "button", class: "more" }, `Show ${counted(Math.min(left, MAP_LISTED))} more of ${counted(left)}`);
    more.addEventListener("click", () => {
      const first = this.shown;
      this.shown += MAP_LISTED;
      this.drawList();
      this.result.querySelectorAll("button")[first]?.focus();
    });
    this.result.replaceChildren(title, list, ...(left > 0 ? [more] : []));
  }
}

/** A map of one network. */
class MapFigure {
  /**
   * @param {MapPanel} panel
   * @param {MapView} view
   */
  constructor(panel, view) {
    this.panel = panel;
    this.view = view;
    this.name = need(payload.networks[view.network]).name;
    this.chart = element("div", {
      class: "chart map-chart", tabindex: "0", role: "group",
      "aria-label": `Map of ${this.name}: arrow keys move from image to image, Enter opens one`,
    });
    this.about = element("span", {});
    this.tip = element("div", { class: "map-tip", hidden: true });
    this.spoken = element("span", { class: "unseen", "aria-live": "polite" });
    this.figure = element("figure", { class: "map-figure" },
      element("figcaption", {}, element("strong", {}, this.name), " ", this.about), this.chart, this.tip, this.spoken);
    /** @type {PlotFigure | null} */
    this.plot = null;
    /** @type {number[]} Shown images, in the order of the drawn dots. */
    this.drawn = [];
    /** @type {[number, number][]} Their places in pixels of the plot. */
    this.places = [];
    /** @type {Element[]} */
    this.dots = [];
    /** @type {[number, number][] | null} */
    this.path = null;
    /** @type {Colouring | null} */
    this.colouring = null;
    // A layer of its own: what moves does not draw the images again.
    this.overlay = svg("svg", { class: "map-overlay", "aria-hidden": "true" });
    new ResizeObserver(() => {
      if (this.colouring && this.chart.clientWidth !== Number(this.plot?.getAttribute("width"))) {
        this.draw(this.colouring);
        panel.mark();
      }
    }).observe(this.chart);
    this.listen();
  }

  /** @param {Colouring} colouring */
  draw(colouring) {
    this.colouring = colouring;
    this.chart.classList.toggle("lassoes", this.panel.lassoes);
    const width = this.chart.clientWidth;
    if (!width) return;
    const projection = this.view.projections.find((each) => each.kind === this.panel.kind);
    const points = projection ? numbers(projection.points) : [];
    const [first = 0, second = 0] = projection?.shares ?? [];
    this.about.textContent = this.panel.kind === "pca"
      ? `PCA: components 1 and 2 have ${percent(first, 0)} % and ${percent(second, 0)} % of the variance`
      : "t-SNE: near images have similar features; axes have no meaning";
    const test = this.panel.isShown(this.view);
    const of = colouring.of(this.view);
    const groups = new Map();
    if (points.length) {
      for (let at = 0; at < this.panel.count; at += 1) {
        if (!test(at)) continue;
        const category = of(at);
        const group = groups.get(category) ?? [];
        groups.set(category, group);
        group.push({ x: points[2 * at], y: points[2 * at + 1], at });
      }
    }
    const marks = [...groups].sort(([a], [b]) => a - b).map(([category, group]) =>
      Plot.dot(group, { x: "x", y: "y", r: 2.6, symbol: symbolOf(category), fill: colourOf(this.panel.colouring, category), fillOpacity: 0.75 }));
    const height = Math.min(width, MAP_HEIGHT);
    const beside = ((width / height - 1) * 65535) / 2; // both axes have one scale
    const plot = Plot.plot({
      className: "plot", width, height, margin: 6, axis: null,
      x: { domain: [-beside, 65535 + beside] }, y: { domain: [0, 65535] },
      marks: [Plot.dot([], { x: "x", y: "y" }), ...marks],
    });
    this.plot = plot;
    plot.setAttribute("aria-hidden", "true");
    this.drawn = [...groups].sort(([a], [b]) => a - b).flatMap(([, group]) => group.map((/** @type {{ at: number }} */ each) => each.at));
    this.dots = [...plot.querySelectorAll("g[aria-label=dot] > *")];
    const [x, y] = [need(plot.scale("x")), need(plot.scale("y"))];
    this.places = this.drawn.map((at) => [x.apply(need(points[2 * at])), y.apply(need(points[2 * at + 1]))]);
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.chart.replaceChildren(plot, this.overlay);
    this.tip.hidden = true;
  }

  /**
   * Fade all but the chosen images; none if none is chosen.
   * @param {number[]} chosen
   */
  fade(chosen) {
    const there = new Set(chosen);
    for (const [place, dot] of this.dots.entries()) dot.classList.toggle("faint", there.size > 0 && !there.has(need(this.drawn[place])));
  }

  /**
   * Draw the ring of the current image, and the path of the lasso.
   * @param {number | null} current
   */
  ring(current) {
    const place = current === null ? -1 : this.drawn.indexOf(current);
    const at = this.places[place];
    this.overlay.replaceChildren();
    if (at) this.overlay.append(svg("circle", { cx: at[0], cy: at[1], r: 7, class: "map-ring" }));
    if (this.path) this.overlay.append(svg("path", { d: `M${this.path.join("L")}Z`, class: "map-lasso" }));
  }

  listen() {
    const { chart, panel } = this;
    chart.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      if (panel.lassoes) {
        chart.setPointerCapture(event.pointerId);
        this.path = [this.at(event)];
      }
      this.hover(event);
    });
    chart.addEventListener("pointermove", (event) => {
      if (this.path) {
        this.path.push(this.at(event));
        this.ring(panel.current);
      } else {
        this.hover(event);
      }
    });
    chart.addEventListener("pointerup", (event) => {
      const path = this.path;
      this.path = null;
      this.ring(panel.current);
      if (path && extentOf(path) > 12) panel.list(this.within(path));
      else this.open(this.near(this.at(event)));
    });
    chart.addEventListener("pointercancel", () => {
      this.path = null;
      this.ring(panel.current);
    });
    chart.addEventListener("pointerleave", () => {
      this.tip.hidden = true;
    });
    chart.addEventListener("keydown", (event) => this.key(event));
    chart.addEventListener("blur", () => {
      this.tip.hidden = true;
    });
  }

  /**
   * @param {PointerEvent} event
   * @returns {[number, number]} Place in pixels of the plot.
   */
  at(event) {
    const box = need(this.plot).getBoundingClientRect();
    const factor = Number(need(this.plot).getAttribute("width")) / box.width;
    return [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
  }

  /**
   * @param {[number, number][]} path
   * @returns {number[]} The images inside.
   */
  within(path) {
    return this.drawn.filter((_, place) => d3.polygonContains(path, need(this.places[place]))).sort((a, b) => a - b);
  }

  /**
   * @param {[number, number]} at
   * @param {number} [within] Largest distance in pixels.
   * @returns {number | null} Place of the nearest dot.
   */
  near([x, y], within = 14) {
    let [best, least] = [-1, within ** 2];
    for (const [place, [left, top]] of this.places.entries()) {
      const distance = (left - x) ** 2 + (top - y) ** 2;
      if (distance < least) [best, least] = [place, distance];
    }
    return best < 0 ? null : best;
  }

  /** @param {PointerEvent} event */
  hover(event) {
    const place = this.near(this.at(event));
    this.panel.point(place === null ? null : need(this.drawn[place]));
    this.describe(place);
  }

  /** @param {number | null} place */
  open(place) {
    if (place === null) return;
    openImage([this.panel.image(need(this.drawn[place]), this.view)], 0);
  }

  /**
   * Show the picture of an image beside its dot.
   * @param {number | null} place
   * @param {boolean} [aloud]
   */
  describe(place, aloud = false) {
    this.tip.hidden = place === null;
    if (place === null) return;
    const at = need(this.drawn[place]);
    const image = this.panel.image(at, this.view);
    const method = this.panel.methodOf(this.view);
    const score = image.scores().find((each) => each.method === method);
    const lines = [image.name, `${image.set} (${image.isId ? "ID" : "OOD"})`];
    if (image.truth !== null) lines.push(`is ${image.truth}`);
    if (image.predicted !== null) lines.push(`predicted ${image.predicted}`);
    if (score?.percentile != null) lines.push(`${labelOf(method)}: above ${percent(score.percentile, 1)} % of the ID images`);
    this.tip.replaceChildren(picture(image.sheets, image.number, ""), element("div", {}, ...lines.map((line) => element("span", { class: "caption" }, line))));
    const [x, y] = need(this.places[place]);
    const width = Number(need(this.plot).getAttribute("width"));
    // Beside the dot, where there is room for its lines; else below it.
    const side = width > 480 && x > width / 2 ? "right" : "left";
    const off = width > 480 ? (side === "left" ? x : width - x) + 14 : 0;
    this.tip.style.setProperty("top", `${Math.round(this.chart.offsetTop + y + (width > 480 ? 0 : 14))}px`);
    this.tip.style.setProperty(side, `${Math.round(off)}px`);
    this.tip.style.removeProperty(side === "left" ? "right" : "left");
    if (aloud) this.spoken.textContent = lines.join(", ");
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const direction = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    const current = this.panel.current === null ? -1 : this.drawn.indexOf(this.panel.current);
    if (event.key === "Enter" && current >= 0) {
      event.preventDefault();
      this.open(current);
    }
    if (event.key === "Escape" && this.panel.chosen.length) this.panel.list([]);
    if (!direction || !this.drawn.length) return;
    event.preventDefault();
    const place = current < 0 ? 0 : this.next(current, need(direction[0]), need(direction[1]));
    this.panel.point(need(this.drawn[place]));
    this.describe(place, true);
  }

  /**
   * Return the nearest dot in a direction, at most 45 degrees off; the same one if there is none.
   * @param {number} from
   * @param {number} right
   * @param {number} down
   */
  next(from, right, down) {
    const [x, y] = need(this.places[from]);
    let [best, least] = [from, Infinity];
    for (const [place, [left, top]] of this.places.entries()) {
      const along = (left - x) * right + (top - y) * down;
      const across = Math.abs((left - x) * down) + Math.abs((top - y) * right);
      if (along > 0.5 && across <= along && along + across < least) [best, least] = [place, along + across];
    }
    return best;
  }
}

/**
 * Colour images by class: the most frequent classes, and the rest together.
 * @param {string} label
 * @param {ReadonlyArray<string>} classes
 * @param {string} none Name of the category of images without a class.
 * @param {ArrayLike<number>} labels Class plus 1; 0 without one.
 * @returns {Colouring & { category: (label: number) => number }}
 */
function classColouring(label, classes, none, labels) {
  const counts = new Map();
  for (const each of Array.from(labels)) if (each) counts.set(each, (counts.get(each) ?? 0) + 1);
  const known = [...counts.keys()].sort((a, b) => a - b);
  const order = known.length <= MAP_CATEGORIES ? known
    : [...counts].sort((a, b) => b[1] - a[1]).slice(0, MAP_CATEGORIES).map(([each]) => each);
  const places = new Map(order.map((each, at) => [each, at]));
  const rest = order.length;
  const category = (/** @type {number} */ each) => (each === 0 ? rest + 1 : (places.get(each) ?? rest));
  return {
    label,
    names: [...order.map((each) => classes[each - 1] ?? `class ${each - 1}`), "other classes", ...(none ? [none] : [])],
    of: () => (at) => category(need(labels[at])),
    category,
  };
}

/** @param {number} category */
function symbolOf(category) {
  return need(MAP_SYMBOLS[(category + Math.floor(category / MAP_COLOURS)) % MAP_SYMBOLS.length]);
}

/**
 * @param {string} colouring
 * @param {number} category
 */
function colourOf(colouring, category) {
  if (colouring === "percentile") return category > BANDS.length ? "var(--faint)" : `var(--band-${category})`;
  return `var(--cat-${category % MAP_COLOURS})`;
}

/**
 * @param {string} colouring
 * @param {number} category
 */
function symbolKey(colouring, category) {
  const plot = Plot.plot({
    className: "plot", width: 16, height: 16, margin: 0, axis: null, x: { domain: [-1, 1] }, y: { domain: [-1, 1] },
    marks: [Plot.dot([[0, 0]], { r: 5, symbol: symbolOf(category), fill: colourOf(colouring, category) })],
  });
  plot.setAttribute("aria-hidden", "true");
  return plot;
}

/**
 * @param {string} name
 * @param {Record<string, string | number>} attributes
 */
function svg(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}

/**
 * Return the longer side of what a path encloses.
 * @param {[number, number][]} path
 */
function extentOf(path) {
  const side = (/** @type {0 | 1} */ at) => Math.max(...path.map((each) => each[at])) - Math.min(...path.map((each) => each[at]));
  return Math.max(side(0), side(1));
}

/**
 * @param {ReadonlyArray<ShownImage>} images
 * @returns {string}
 */
function summary(images) {
  const parts = [`${counted(images.length)} ${images.length === 1 ? "image" : "images"}: ${frequencies(images.map((each) => each.set))}`];
  const predicted = images.flatMap((each) => (each.predicted === null ? [] : [each.predicted]));
  if (predicted.length) parts.push(`predicted ${frequencies(predicted)}`);
  return parts.join("; ");
}

/**
 * @param {string[]} names
 * @returns {string} The five most frequent names with their numbers.
 */
function frequencies(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  const order = [...counts].sort((a, b) => b[1] - a[1]);
  const shown = order.slice(0, 5).map(([name, count]) => `${counted(count)} ${name}`);
  return shown.join(", ") + (order.length > 5 ? ` and ${order.length - 5} more` : "");
}

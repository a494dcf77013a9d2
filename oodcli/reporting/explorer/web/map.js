// Maps of features, of one run or of two side by side: hover, lasso, filter, list.

const MAP_CATEGORIES = 24; // with more there are no keys
const MAP_LISTED = 60;
const MAP_HEIGHT = 600;
const MAP_MARGIN = 6;
const MAP_AREA = 21; // of a mark, in square pixels
const MAP_GRID = 65535;

definePanel({
  id: "map",
  title: "Map of features",
  wanted: () => Boolean(payload.images?.map),
  build(body) {
    const map = new MapPanel(need(need(payload.images).map));
    body.append(...map.parts());
    map.draw();
    return (changed) => {
      if (changed.has("method")) map.followMethod();
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
    this.colourings = colouringsOf(map);
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
    this.lasso = element("button", { type: "button", class: "toggle", "aria-pressed": String(!matchMedia("(pointer: coarse), (max-width: 40rem)").matches) }, "Lasso");
    for (const query of ["print", "(prefers-color-scheme: dark)"]) {
      matchMedia(query).addEventListener("change", () => this.views.forEach((each) => each.paint()));
    }
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
    const colours = chooser("Colour by", () => [...this.colourings].map(([key, each]) => [key, each.label()]), () => this.colouring, (value) => {
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

  /** @returns {Colouring} */
  get chosenColouring() {
    return need(this.colourings.get(this.colouring));
  }

  /** @returns {ReadonlyArray<string>} Names of the categories of the chosen colouring. */
  names() {
    return this.chosenColouring.names;
  }

  /** Draw again what depends on the chosen method. */
  followMethod() {
    if (this.colouring === "percentile" || this.hidden.get("percentile")?.size) this.draw();
  }

  /**
   * @param {MapView} view
   * @returns {(at: number) => boolean}
   */
  isShown(view) {
    const tests = [...this.hidden].flatMap(([key, hidden]) => {
      const colouring = this.colourings.get(key);
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
    const colouring = this.chosenColouring;
    const hidden = this.hidden.get(this.colouring) ?? new Set();
    const counts = this.map.views.map((view) => {
      const of = colouring.of(view);
      const own = new Array(colouring.names.length).fill(0);
      for (let at = 0; at < this.count; at += 1) own[of(at)] += 1;
      return own;
    });
    this.drawLegend(colouring, counts, hidden);
    const solo = colouring.names.filter((_, category) => !hidden.has(category));
    this.only.replaceChildren(
      element("option", { value: "" }, "all"),
      ...colouring.names.flatMap((name, category) => (counts.some((own) => own[category])
        ? [element("option", { value: category, selected: hidden.size > 0 && solo.length === 1 && solo[0] === name }, name)] : [])));
    for (const each of this.views) each.draw(colouring);
    this.say();
  }

  /**
   * @param {Colouring} colouring
   * @param {number[][]} counts Of images, by map and category.
   * @param {Set<number>} hidden
   */
  drawLegend(colouring, counts, hidden) {
    const present = colouring.names.flatMap((_, category) => (counts.some((own) => own[category]) ? [category] : []));
    if (present.length > MAP_CATEGORIES) {
      this.legend.replaceChildren(element("span", { class: "meaning" },
        `${counted(present.length)} categories, too many for keys: colours and marks repeat. Choose one under Only.`));
      return;
    }
    const runs = this.views.map((each) => each.name);
    const keys = present.map((category) => {
      const own = counts.map((each) => need(each[category]));
      const same = own.every((each) => each === own[0]);
      const text = same ? counted(need(own[0])) : own.map(counted).join(" | ");
      const spoken = same ? text : own.map((each, at) => `${counted(each)} in ${runs[at]}`).join(", ");
      return { differs: !same, button: this.key(colouring, category, text, spoken, hidden) };
    });
    const said = [];
    if (keys.some((each) => each.differs)) said.push(`Numbers of images: ${runs.join(" | ")}.`);
    if (this.colouring === "percentile") said.push(...this.withoutPercentiles());
    this.legend.replaceChildren(...keys.map((each) => each.button), ...said.map((each) => element("span", { class: "meaning" }, each)));
  }

  /** @returns {string[]} Which maps have no percentiles of the chosen method, and which they have. */
  withoutPercentiles() {
    return this.map.views.filter((view) => !view.methods.includes(state.method)).map((view) =>
      `No percentiles for ${labelOf(state.method)} of ${need(payload.networks[view.network]).name}: this map has them for ${view.methods.map(labelOf).join(", ")}.`);
  }

  /**
   * @param {Colouring} colouring
   * @param {number} category
   * @param {string} count
   * @param {string} spoken
   * @param {Set<number>} hidden
   */
  key(colouring, category, count, spoken, hidden) {
    const button = element("button", { type: "button", class: "toggle map-key", "aria-pressed": String(!hidden.has(category)) },
      symbolKey(colouring, category), `${colouring.names[category]} `,
      element("span", { class: "count", "aria-hidden": "true" }, count), element("span", { class: "unseen" }, spoken));
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
    this.status.replaceChildren(
      `${counted(shown)} of ${counted(this.count)} images shown. `,
      element(
        "span",
        { class: "hint" },
        "Draw around images to list them" +
          (this.lassoes ? "" : " (Lasso must be on)") +
          ", or choose categories and list the images shown; with the map focused, arrow keys move from image to image and Enter opens one.",
      ),
    );
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
    for (const each of this.views) each.paint();
  }

  /**
   * @param {number} at
   * @param {MapView} [view]
   * @returns {ShownImage}
   */
  image(at, view = need(this.map.views[0])) {
    const { images, sets } = this.map;
    const source = need(sets[need(numbers(images.sets)[at])]);
    const listed = imageInStrip(view.network, source.name, need(numbers(images.rows)[at]));
    if (listed) return listed;
    const predicted = view.predicted === null ? null : need(numbers(view.predicted)[at]);
    const percentiles = numbers(view.percentiles);
    return {
      network: view.network,
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
        return { method, score: null, percentile, accepted: acceptedAt(percentile, 0.05) };
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
      const item = imageButton(image, image.isId && image.truth !== null ? [] : [image.set], () => openImage(images, place));
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
    this.canvas = element("canvas", { class: "map-dots", "aria-hidden": "true" });
    this.width = 0;
    this.height = 0;
    /** @type {number[]} Shown images, in the order in which they are drawn. */
    this.drawn = [];
    /** @type {number[]} Their categories. */
    this.categories = [];
    /** @type {[number, number][]} Their places in pixels. */
    this.places = [];
    /** @type {[number, number][] | null} */
    this.path = null;
    /** @type {Colouring | null} */
    this.colouring = null;
    // A layer of its own: what moves does not draw the images again.
    this.overlay = svg("svg", { class: "map-overlay", "aria-hidden": "true" });
    this.chart.append(this.canvas, this.overlay);
    new ResizeObserver(() => {
      if (this.colouring && this.chart.clientWidth !== this.width) this.draw(this.colouring);
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
    const all = points.length ? Array.from({ length: this.panel.count }, (_, at) => at).filter(test) : [];
    // What is grey lies below what has a colour.
    const order = (/** @type {number} */ category) => (colouring.colour(category) === MAP_GREY ? -1 : category);
    const sorted = all.map((at) => ({ at, category: of(at) })).sort((a, b) => order(a.category) - order(b.category) || a.at - b.at);
    this.drawn = sorted.map((each) => each.at);
    this.categories = sorted.map((each) => each.category);
    [this.width, this.height] = [width, Math.min(width, MAP_HEIGHT)];
    const side = Math.min(this.width, this.height) / 2 - MAP_MARGIN; // both axes have one scale
    const x = d3.scaleLinear([0, MAP_GRID], [width / 2 - side, width / 2 + side]);
    const y = d3.scaleLinear([0, MAP_GRID], [this.height / 2 + side, this.height / 2 - side]);
    this.places = this.drawn.map((at) => [x(need(points[2 * at])), y(need(points[2 * at + 1]))]);
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.tip.hidden = true;
    this.paint();
  }

  /** Draw the images, faintly all but the chosen ones if any are chosen. */
  paint() {
    const colouring = this.colouring;
    const context = this.canvas.getContext("2d");
    if (!colouring || !context || !this.width) return;
    const density = matchMedia("print").matches ? 3 : devicePixelRatio;
    [this.canvas.width, this.canvas.height] = [this.width * density, this.height * density];
    const styles = getComputedStyle(this.chart);
    const colours = colouring.names.map((_, category) => styles.getPropertyValue(colouring.colour(category)));
    const marks = MAP_SYMBOLS.map((each) => new Path2D(need(d3.symbol(each, MAP_AREA)())));
    const chosen = new Set(this.panel.chosen);
    for (const [place, [x, y]] of this.places.entries()) {
      const category = need(this.categories[place]);
      context.setTransform(density, 0, 0, density, x * density, y * density);
      context.globalAlpha = chosen.size && !chosen.has(need(this.drawn[place])) ? 0.12 : 0.75;
      context.fillStyle = need(colours[category]);
      context.fill(need(marks[category % marks.length]));
    }
    this.ring(this.panel.current);
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
   * @returns {[number, number]} Place in pixels of the map.
   */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    const factor = this.width / box.width;
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
    const at = need(this.drawn[place]);
    const { chosen } = this.panel;
    const walked = chosen.includes(at) ? chosen : [at]; // those that are listed below the map
    openImage(walked.map((each) => this.panel.image(each, this.view)), walked.indexOf(at));
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
    const score = image.scores().find((each) => each.method === state.method);
    const lines = [image.name, `${image.set} (${image.isId ? "ID" : "OOD"})`];
    if (image.truth !== null) lines.push(`is ${image.truth}`);
    if (image.predicted !== null) lines.push(`predicted ${image.predicted}`);
    if (score?.percentile != null) lines.push(`${labelOf(state.method)}: above ${percent(score.percentile, 1)} % of the ID images`);
    this.tip.replaceChildren(picture(image.sheets, image.number, ""), element("div", {}, ...lines.map((line) => element("span", { class: "caption" }, line))));
    const [x, y] = need(this.places[place]);
    const { width } = this;
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

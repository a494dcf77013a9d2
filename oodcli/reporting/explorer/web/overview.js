// The best methods, and all methods by data sets as a heat map that is clicked to choose.

definePanel({
  id: "overview",
  title: "Overview",
  build(body) {
    const about = element("p", { class: "legend" });
    const lead = element("div", { class: "cards" });
    const filter = element("input", { type: "search", id: "filter", placeholder: "such as energy" });
    const legend = element("div", { class: "heat-legend" });
    const more = element("button", { type: "button", class: "more" });
    const scroll = element("div", { class: "scroll heat", role: "region", tabindex: "-1", "aria-label": "Methods by data sets" });
    const tools = element("div", { class: "controls" },
      element("span", { class: "choice" }, element("label", { for: filter.id }, "Show methods with"), filter));
    const nothing = element("p", { class: "legend", role: "status" });
    const hint = element("p", { class: "legend hint" },
      "In percent. A value chooses its method and OOD set; a heading sorts. By keyboard: arrow keys, and Enter to choose.");
    body.append(about, lead, tools, hint, legend, nothing, scroll, more);
    watchScroll(scroll);

    /** @type {{ column: number | null, downwards: boolean, all: boolean }} */
    const view = { column: null, downwards: true, all: false };
    /** @type {HeatMap | null} */
    let map = null;
    const draw = () => {
      about.textContent = aboutRun();
      lead.replaceChildren(...leaders());
      map = heatMap(view, filter.value, (column) => {
        view.downwards = view.column === column ? !view.downwards : true;
        view.column = column;
        draw();
        map?.heading(column)?.focus();
      });
      legend.replaceChildren(...map.legend);
      scroll.replaceChildren(map.table);
      scroll.hidden = map.total === 0;
      nothing.textContent = map.total ? "" : `No method has "${filter.value.trim()}" in its name; clear the field to see all ${shownResult().methods.length}.`;
      more.hidden = map.total <= SHOWN_METHODS;
      more.textContent = view.all ? `Show the first ${SHOWN_METHODS}` : `Show all ${map.total} methods`;
      map.mark();
    };
    filter.addEventListener("input", draw);
    more.addEventListener("click", () => {
      view.all = !view.all;
      draw();
    });
    // All methods are printed, whatever the screen shows.
    window.addEventListener("beforeprint", () => {
      const before = { ...view };
      const word = filter.value;
      Object.assign(view, { all: true });
      filter.value = "";
      draw();
      window.addEventListener("afterprint", () => {
        Object.assign(view, before);
        filter.value = word;
        draw();
      }, { once: true });
    });
    draw();
    return (changed) => {
      if (["result", "metric", "convention", "spectrum", "groups"].some((name) => changed.has(/** @type {keyof State} */ (name)))) {
        if (changed.has("result") || changed.has("spectrum") || changed.has("groups")) view.column = null;
        draw();
      } else {
        if (changed.has("set")) lead.replaceChildren(...leaders());
        map?.mark();
      }
    };
  },
});

const SHOWN_METHODS = 15;
const HEAT_STEPS = 10;
const METRIC_NAMES = { auroc: "AUROC", fpr95: "FPR95", aupr_in: "AUPR-in", aupr_out: "AUPR-out" };

/**
 * @typedef {object} HeatMap
 * @property {HTMLTableElement} table
 * @property {Node[]} legend
 * @property {number} total Number of methods, shown or not.
 * @property {() => void} mark Marks the chosen cell.
 * @property {(column: number) => HTMLElement | undefined} heading
 */

/** @returns {number[]} Indices of the columns that are shown. */
function shownColumns() {
  const { columns } = shownResult();
  const there = groupsOf(shownEvaluation());
  const everything = there.every((group) => state.groups.includes(group));
  return columns.flatMap((column, at) => {
    if (column.spectrum !== state.spectrum) return [];
    return (column.group === "all" ? everything : state.groups.includes(column.group)) ? [at] : [];
  });
}

/** @returns {string} Which run is shown, and how good its classifier is. */
function aboutRun() {
  const { name, networks } = shownResult();
  const { arch, training, evaluations } = shownNetwork();
  const { id_name: idName, n_id: images, n_correct: correct } = need(evaluations[0]);
  const accuracy = correct === null ? "" : `, accuracy ${percent(correct / images)} %`;
  const what = `${arch ? `${arch}, ` : ""}${training ? `trained with ${training}, ` : ""}ID ${idName} (${counted(images)} images${accuracy})`;
  if (networks.length === 1) return `${name}: ${what}`;
  return `mean of ${networks.length} runs: ${name}; all that follows the overview is of ${shownNetwork().name}: ${what}`;
}

/** @returns {HTMLElement[]} The best method of every average, and on the chosen set. */
function leaders() {
  const result = shownResult();
  const columns = shownColumns();
  const means = columns.filter((at) => need(result.columns[at]).dataset === "");
  const own = columns.filter((at) => need(result.columns[at]).dataset === state.set);
  const shown = means.length ? [...means, ...own] : columns;
  return shown.map((at) => {
    const column = need(result.columns[at]);
    const order = ranked(result, at, true);
    const row = need(order[0]);
    const name = need(result.methods[row]);
    const button = element("button", { type: "button", class: "card" },
      element("span", { class: "card-about" }, column.dataset ? `Best on ${column.label}` : `Best ${column.label}`),
      element("span", { class: "card-name" }, ...breakable(need(result.labels[row]))),
      element("span", { class: "card-value" },
        `${METRIC_NAMES[state.metric]} ${percentOf(valueOf(result, state.metric, state.convention, row, at))} %`));
    button.addEventListener("click", () => choose({ method: name }));
    return button;
  });
}

/**
 * @param {number | null} value
 * @returns {string}
 */
function percentOf(value) {
  return value === null ? "–" : percent(value);
}

/**
 * Return the rows of a result, sorted by a column; rows without a value stay at the end.
 * @param {ResultTable} result
 * @param {number} column
 * @param {boolean} bestFirst
 */
function ranked(result, column, bestFirst) {
  const sign = (state.metric === "fpr95") === bestFirst ? 1 : -1;
  const value = (/** @type {number} */ row) => valueOf(result, state.metric, state.convention, row, column);
  return result.methods.map((_, row) => row).sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return Number(x === null) - Number(y === null);
    return sign * (x - y);
  });
}

/**
 * @param {{ column: number | null, downwards: boolean, all: boolean }} view
 * @param {string} filter
 * @param {(column: number) => void} sort
 * @returns {HeatMap}
 */
function heatMap(view, filter, sort) {
  const result = shownResult();
  const columns = shownColumns();
  const sorted = view.column ?? columns.findLast((at) => need(result.columns[at]).dataset === "") ?? need(columns.at(-1));
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = ranked(result, sorted, view.downwards).filter((row) =>
    words.every((word) => need(result.labels[row]).toLowerCase().includes(word)));
  const shown = view.all ? rows : rows.slice(0, SHOWN_METHODS);
  const ends = new Map(columns.map((at) =>
    [at, endsOf(shown.flatMap((row) => valueOf(result, state.metric, state.convention, row, at) ?? []))]));

  const headings = columns.map((at) => {
    const { label, dataset } = need(result.columns[at]);
    const button = element("button", { type: "button" }, label);
    button.addEventListener("click", () => sort(at));
    return element("th", {
      scope: "col", class: dataset ? "number" : "number mean",
      "aria-sort": at !== sorted ? "none" : view.downwards === (state.metric !== "fpr95") ? "descending" : "ascending",
    }, button);
  });
  const table = element("table", { role: "grid", "aria-label": `${METRIC_NAMES[state.metric]} of methods by data sets, in percent` },
    element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Method"), ...headings)));
  const body = table.createTBody();
  /** @type {{ cell: HTMLElement, method: string, set: string }[][]} */
  const cells = shown.map((row) => {
    const method = need(result.methods[row]);
    const line = body.insertRow();
    const name = need(result.labels[row]);
    line.append(element("th", { scope: "row", title: name }, ...breakable(name)));
    return columns.map((at) => {
      const value = valueOf(result, state.metric, state.convention, row, at);
      const column = need(result.columns[at]);
      const cell = element("td", {
        tabindex: -1, "aria-selected": "false",
        class: `number heat-${step(value, need(ends.get(at)))}${column.dataset ? "" : " mean"}`,
      }, percentOf(value));
      line.append(cell);
      const choice = { cell, method, set: column.dataset };
      cell.addEventListener("click", () => pick(choice));
      return choice;
    });
  });
  const pick = (/** @type {{ cell: HTMLElement, method: string, set: string }} */ { method, set }) =>
    choose(set ? { method, set } : { method });
  moveByKeys(table, cells, pick);
  return {
    table,
    legend: shown.length ? heatLegend() : [],
    total: rows.length,
    mark: () => mark(cells),
    heading: (column) => headings[columns.indexOf(column)]?.querySelector("button") ?? undefined,
  };
}

/**
 * Return the ends of the colours of a column: the best value that is shown, and the value that
 * three quarters of them reach, so that a few bad methods leave the others different.
 * @param {number[]} values
 * @returns {{ best: number, worst: number }}
 */
function endsOf(values) {
  const sign = state.metric === "fpr95" ? 1 : -1;
  const sorted = [...values].sort((a, b) => sign * (a - b));
  const worst = sorted[Math.min(sorted.length - 1, Math.ceil(0.75 * sorted.length))];
  return { best: sorted[0] ?? 0, worst: worst ?? 0 };
}

/**
 * Return how dark a cell is: from 0 for the worst values of its column to the best.
 * @param {number | null} value
 * @param {{ best: number, worst: number }} ends
 */
function step(value, ends) {
  if (value === null) return "none";
  // The root of the error shows differences among good methods, too.
  const root = (/** @type {number} */ each) => Math.sqrt(state.metric === "fpr95" ? each : 1 - each);
  const [least, most] = [root(ends.best), root(ends.worst)];
  const good = most > least ? (most - root(value)) / (most - least) : 1;
  return Math.max(0, Math.min(HEAT_STEPS - 1, Math.floor(good * HEAT_STEPS)));
}

/** @returns {Node[]} */
function heatLegend() {
  const ramp = element("span", { class: "ramp", "aria-hidden": "true" });
  for (let at = 0; at < HEAT_STEPS; at += 1) ramp.append(element("span", { class: `heat-${at}` }));
  return [element("span", {}, "in each column: worst quarter"), ramp, element("span", {}, "best of those shown")];
}

/**
 * Mark the chosen method and set; one cell is in the order of the tabulator key.
 * @param {{ cell: HTMLElement, method: string, set: string }[][]} cells
 */
function mark(cells) {
  const flat = cells.flat();
  const chosen = flat.find(({ method, set }) => method === state.method && set === state.set);
  for (const each of flat) {
    each.cell.setAttribute("aria-selected", String(each === chosen));
    each.cell.tabIndex = -1;
  }
  const first = chosen ?? flat[0];
  if (first) first.cell.tabIndex = 0;
}

/**
 * Move the focus among the cells with the arrow keys, Home and End; Enter and Space choose.
 * @template {{ cell: HTMLElement }} T
 * @param {HTMLElement} table
 * @param {T[][]} cells
 * @param {(choice: T) => void} pick
 */
function moveByKeys(table, cells, pick) {
  table.addEventListener("keydown", (event) => {
    const row = cells.findIndex((line) => line.some(({ cell }) => cell === event.target));
    const line = cells[row];
    if (!line) return;
    const column = line.findIndex(({ cell }) => cell === event.target);
    /** @type {Record<string, T | undefined>} */
    const targets = {
      ArrowUp: cells[row - 1]?.[column], ArrowDown: cells[row + 1]?.[column],
      ArrowLeft: line[column - 1], ArrowRight: line[column + 1],
      Home: line[0], End: line.at(-1),
    };
    const chosen = line[column];
    if ((event.key === "Enter" || event.key === " ") && chosen) pick(chosen);
    else if (!(event.key in targets)) return;
    event.preventDefault();
    const target = targets[event.key];
    if (!target) return;
    for (const each of cells.flat()) each.cell.tabIndex = -1;
    target.cell.tabIndex = 0;
    target.cell.focus();
  });
}

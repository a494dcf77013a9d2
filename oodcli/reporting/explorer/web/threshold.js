// The threshold of the chosen method: histogram, ROC and PR curve, and what is accepted.

definePanel({
  id: "threshold",
  title: "Threshold",
  build(body) {
    const metrics = element("dl", { class: "readout metrics" });
    const legend = element("p", { class: "series" });
    const chart = element("div", { class: "chart draggable", id: "histogram" });
    const slider = element("input", { type: "range", id: "threshold-slider", min: 0, step: 1 });
    const presets = element("div", { class: "controls presets", role: "group", "aria-label": "Set the threshold" });
    const readout = element("dl", { class: "readout", id: "readout" });
    const roc = element("div", { class: "chart", id: "roc" });
    const pr = element("div", { class: "chart", id: "pr" });
    const sets = element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "All OOD sets at this threshold" });
    body.append(
      metrics,
      element("div", { class: "two" },
        element("div", {}, legend, chart,
          element("label", { class: "slider", for: slider.id }, "Threshold: drag it, in the histogram or here, or use the arrow keys"),
          slider, presets),
        element("div", {}, readout, element("div", { class: "curves" }, roc, pr))),
      element("h3", {}, "All OOD sets at this threshold"),
      sets,
    );
    slider.addEventListener("input", () => {
      choose({ threshold: scoreAt(shownCurve(), Number(slider.value)) });
    });
    const histogram = draggable(chart);
    const draw = () => {
      const curve = shownCurve();
      const index = indexOf(curve, state.threshold);
      const point = pointAt(shownEvaluation(), curve, shownSet(), index);
      byId("threshold-title").textContent = `${labelOf(state.method)} on ${state.set}${ofRun()}`;
      metrics.replaceChildren(...readouts(shownMetrics()));
      legend.replaceChildren(...seriesLegend());
      slider.max = String(curve.thresholds.length);
      slider.value = String(index);
      slider.setAttribute("aria-valuetext", spoken(point));
      presets.replaceChildren(...presetButtons());
      readout.replaceChildren(...readouts(facts(point)));
      histogram(histogramFigure(chart.clientWidth));
      show(roc, rocFigure(curve, index, roc.clientWidth));
      show(pr, prFigure(curve, index, pr.clientWidth));
      sets.replaceChildren(setsTable(curve, index));
    };
    new ResizeObserver(draw).observe(body);
    draw();
    return draw;
  },
});

/**
 * @param {HTMLElement} host
 * @param {PlotFigure | null} figure
 */
function show(host, figure) {
  host.replaceChildren(...(figure ? [figure] : []));
}

/**
 * Make the threshold of a histogram move with the pointer.
 * @param {HTMLElement} chart
 * @returns {(figure: PlotFigure | null) => void} Shows another figure.
 */
function draggable(chart) {
  /** @type {PlotFigure | null} */
  let figure = null;
  const move = (/** @type {PointerEvent} */ event) => {
    const scale = figure?.scale("x");
    if (!figure || !scale) return;
    const box = figure.getBoundingClientRect();
    const width = Number(figure.getAttribute("width"));
    const score = scale.invert(((event.clientX - box.left) * width) / box.width);
    const curve = shownCurve();
    choose({ threshold: scoreAt(curve, indexOf(curve, score)) });
  };
  chart.addEventListener("pointerdown", (event) => {
    chart.setPointerCapture(event.pointerId);
    move(event);
  });
  chart.addEventListener("pointermove", (event) => {
    if (chart.hasPointerCapture(event.pointerId)) move(event);
  });
  return (next) => {
    figure = next;
    show(chart, next);
  };
}

/** @returns {string} The run that is shown, where the overview shows the mean of several. */
function ofRun() {
  return shownResult().networks.length > 1 ? `, run ${shownNetwork().name}` : "";
}

/** @returns {[string, string][]} The metrics of the chosen method on the chosen set, as in the table. */
function shownMetrics() {
  const own = payload.results.find(({ networks }) => networks.length === 1 && networks[0] === state.network);
  const result = need(own);
  const row = result.methods.indexOf(state.method);
  const column = result.columns.findIndex(
    (each) => each.dataset === state.set && each.spectrum === state.spectrum,
  );
  const names = /** @type {Metric[]} */ (Object.keys(METRIC_NAMES));
  return names.map((metric) => {
    const value = valueOf(result, metric, state.convention, row, column);
    return [METRIC_NAMES[metric], value === null ? "–" : `${percent(value)} %`];
  });
}

/** @returns {Node[]} */
function seriesLegend() {
  const evaluation = shownEvaluation();
  const ood = need(evaluation.sets[shownSet()]);
  return [
    element("span", {}, element("span", { class: "key" }), ` ID: ${evaluation.id_name} (${counted(evaluation.n_id)})`),
    element("span", {}, element("span", { class: "key ood-key" }), ` OOD: ${ood.name} (${counted(ood.n)})`),
  ];
}

/**
 * @param {Point} point
 * @returns {string}
 */
function spoken(point) {
  return (
    `score ${scoreText(state.threshold)}: ${percent(point.id / point.nId)} % of the ID images and ` +
    `${percent(point.ood / point.nOod)} % of the OOD images are accepted`
  );
}

/**
 * @param {number} part
 * @param {number} whole
 */
function share(part, whole) {
  return `${percent(part / whole)} % (${counted(part)} of ${counted(whole)})`;
}

/**
 * @param {Point} point
 * @returns {[string, string][]}
 */
function facts(point) {
  const idPositive = shownConvention().positive === "id";
  const [tpr, fpr] = [" (TPR)", " (FPR)"];
  /** @type {[string, string][]} */
  const found = [
    [`ID accepted${idPositive ? tpr : ""}`, share(point.id, point.nId)],
    [`False alarms: ID rejected${idPositive ? "" : fpr}`, share(point.nId - point.id, point.nId)],
    [`OOD accepted${idPositive ? fpr : ""}`, share(point.ood, point.nOod)],
    [`OOD detected${idPositive ? "" : tpr}`, share(point.nOod - point.ood, point.nOod)],
    ["Errors: ID rejected and OOD accepted", share(point.nId - point.id + point.ood, point.nId + point.nOod)],
  ];
  const total = shownEvaluation().n_correct;
  if (point.correct !== null && total !== null) {
    found.push(
      ["Accuracy on accepted ID images", point.id ? share(point.correct, point.id) : "no image accepted"],
      ["Accuracy on all ID images", share(total, point.nId)],
    );
  }
  found.push(["Accepted if the score is at least", scoreText(state.threshold)]);
  return found;
}

/**
 * @param {[string, string][]} rows
 * @returns {HTMLElement[]}
 */
function readouts(rows) {
  return rows.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)));
}

/** @returns {HTMLElement[]} */
function presetButtons() {
  const set = state.set;
  /** @type {[Rule, string, string][]} */
  const presets = [
    [0.99, "1 % false alarms", "The highest threshold that accepts 99 % of the ID images"],
    [0.95, "5 % false alarms", "The highest threshold that accepts 95 % of the ID images"],
    [0.9, "10 % false alarms", "The highest threshold that accepts 90 % of the ID images"],
    ["errors", "fewest errors", `The fewest rejected ID images and accepted images of ${set} together`],
    ["difference", "best TPR \u2212 FPR", `The largest difference of both rates on ${set}, whatever the numbers of images`],
    ["fpr95", `where ${state.convention} measures FPR95`, `The threshold of FPR95 on ${set}`],
  ];
  return presets.map(([rule, name, title]) => {
    const button = element("button", { type: "button", class: "more", title, "aria-pressed": String(rule === state.rule) }, name);
    button.addEventListener("click", () => {
      choose({ rule });
      const again = [...document.querySelectorAll(".presets button")].find((each) => each.textContent === name);
      if (again instanceof HTMLElement) again.focus();
    });
    return button;
  });
}

/**
 * @param {number} width
 * @returns {PlotFigure | null}
 */
function histogramFigure(width) {
  const found = shownCurve().source.histograms[shownSet()];
  if (!found || !width) return null;
  const bins = (/** @type {Packed} */ packed) => barOutline(packed, found.low, found.high);
  const place = Math.min(Math.max(state.threshold, found.low), found.high);
  return Plot.plot({
    className: "plot",
    ariaLabel: `Histogram of the scores of ${labelOf(state.method)} on ID and OOD images`,
    width,
    height: Math.max(220, Math.min(300, width / 2.2)),
    marginLeft: 44,
    marginBottom: 40,
    x: { label: `score of ${labelOf(state.method)}`, domain: [found.low, found.high], ticks: Math.max(3, width / 90), labelAnchor: "center", labelArrow: "none", labelOffset: 36 },
    y: { label: "images (%)", ticks: 5 },
    marks: [
      ...histogramMarks(bins(found.id_counts), bins(found.ood_counts)),
      Plot.ruleY([0]),
      Plot.ruleX([place], { stroke: "var(--ink)", strokeWidth: 2.5 }),
      Plot.dot([place], { x: (/** @type {number} */ x) => x, y: () => 0, r: 6, fill: "var(--ink)" }),
    ],
  });
}

/**
 * Return the outline of the bars of a histogram.
 * @param {Packed} packed Number of images in each bin.
 * @param {number} low
 * @param {number} high
 */
function barOutline(packed, low, high) {
  const counts = Array.from(unpacked(packed));
  const total = counts.reduce((sum, each) => sum + each, 0);
  const step = (high - low) / counts.length;
  return counts.flatMap((count, at) =>
    [at, at + 1].map((edge) => ({ x: low + edge * step, y: (100 * count) / total })));
}

/**
 * @param {ReturnType<typeof barOutline>} id
 * @param {ReturnType<typeof barOutline>} ood
 * @returns {object[]} Marks of ID images, and of OOD images over them.
 */
function histogramMarks(id, ood) {
  return [
    Plot.areaY(id, { x: "x", y1: 0, y2: "y", fill: "var(--id)", fillOpacity: 0.75 }),
    Plot.areaY(ood, { x: "x", y1: 0, y2: "y", fill: "var(--ood)", fillOpacity: 0.25 }),
    Plot.line(ood, { x: "x", y: "y", stroke: "var(--ood)", strokeWidth: 2 }),
  ];
}

/**
 * Return the points of a curve with the convention's positive class, from no image positive to all.
 * @param {Curve} curve
 * @returns {{ tp: number, fp: number, positives: number, negatives: number, index: number }[]}
 */
function ratePoints(curve) {
  const evaluation = shownEvaluation();
  const idPositive = shownConvention().positive === "id";
  const points = Array.from({ length: curve.thresholds.length + 1 }, (_, index) => {
    const { id, nId, ood, nOod } = pointAt(evaluation, curve, shownSet(), index);
    return idPositive
      ? { tp: id, fp: ood, positives: nId, negatives: nOod, index }
      : { tp: nOod - ood, fp: nId - id, positives: nOod, negatives: nId, index };
  });
  return idPositive ? points.reverse() : points;
}

/**
 * @param {Curve} curve
 * @param {number} index
 * @param {number} width
 * @returns {PlotFigure | null}
 */
function rocFigure(curve, index, width) {
  const points = ratePoints(curve).map((each) => ({
    x: (100 * each.fp) / each.negatives, y: (100 * each.tp) / each.positives, index: each.index,
  }));
  const idPositive = shownConvention().positive === "id";
  return squareFigure(points, index, width, {
    name: "ROC curve",
    x: idPositive ? "FPR: OOD accepted (%)" : "FPR: ID rejected (%)",
    y: idPositive ? "TPR: ID accepted (%)" : "TPR: OOD detected (%)",
    diagonal: true,
  });
}

/**
 * @param {Curve} curve
 * @param {number} index
 * @param {number} width
 * @returns {PlotFigure | null}
 */
function prFigure(curve, index, width) {
  // Without a positive image precision is not defined.
  const points = ratePoints(curve).filter((each) => each.tp + each.fp > 0).map((each) => ({
    x: (100 * each.tp) / each.positives, y: (100 * each.tp) / (each.tp + each.fp), index: each.index,
  }));
  const idPositive = shownConvention().positive === "id";
  return squareFigure(points, index, width, {
    name: "Precision-recall curve",
    x: idPositive ? "recall: ID accepted (%)" : "recall: OOD detected (%)",
    y: idPositive ? "precision: ID among accepted (%)" : "precision: OOD among rejected (%)",
    diagonal: false,
  });
}

/**
 * @param {{ x: number, y: number, index: number }[]} points
 * @param {number} index The marked point.
 * @param {number} width
 * @param {{ name: string, x: string, y: string, diagonal: boolean }} labels
 * @returns {PlotFigure | null}
 */
function squareFigure(points, index, width, labels) {
  if (!width) return null;
  const marked = points.filter((each) => each.index === index);
  return Plot.plot({
    className: "plot",
    ariaLabel: labels.name,
    width,
    height: Math.max(210, Math.min(300, width * 0.85)),
    marginLeft: 44,
    marginTop: 26,
    marginBottom: 40,
    marginRight: 16,
    x: { label: labels.x, domain: [0, 100], ticks: 5, labelAnchor: "center", labelArrow: "none", labelOffset: 36 },
    y: { label: labels.y, domain: [0, 100], ticks: 5, labelArrow: "none", grid: true },
    marks: [
      ...(labels.diagonal ? [Plot.line([{ x: 0, y: 0 }, { x: 100, y: 100 }], { x: "x", y: "y", stroke: "var(--edge)", strokeDasharray: "4 4" })] : []),
      Plot.line(points, { x: "x", y: "y", stroke: "var(--id)", strokeWidth: 2 }),
      Plot.dot(marked, { x: "x", y: "y", r: 6, fill: "var(--ink)", stroke: "var(--paper)" }),
    ],
  });
}

/**
 * @param {Curve} curve
 * @param {number} index
 * @returns {HTMLTableElement}
 */
function setsTable(curve, index) {
  const evaluation = shownEvaluation();
  const table = element("table", { class: "compact" });
  const headings = ["OOD set", "Group", "Images", "Accepted", "OOD accepted", "OOD detected", ""];
  table.append(element("thead", {}, element("tr", {}, ...headings.map((name, at) =>
    name ? element("th", { scope: "col", class: columnClass(at) }, name) : element("td", { class: "extra" })))));
  const body = table.createTBody();
  evaluation.sets.forEach((each, at) => {
    if (!curve.ood[at] || !state.groups.includes(each.group)) return;
    const { ood, nOod } = pointAt(evaluation, curve, at, index);
    const line = body.insertRow();
    line.className = each.name === state.set ? "chosen" : "";
    line.append(
      element("th", { scope: "row", title: each.name }, each.name),
      element("td", { class: "extra" }, each.group),
      element("td", { class: "number extra" }, counted(nOod)),
      element("td", { class: "number extra" }, counted(ood)),
      element("td", { class: "number" }, `${percent(ood / nOod)} %`),
      element("td", { class: "number extra" }, `${percent((nOod - ood) / nOod)} %`),
      element("td", { class: "extra", "aria-hidden": "true" }, meter((nOod - ood) / nOod)),
    );
  });
  return table;
}

/** @param {number} column Column of the table of sets; some are hidden on phones. */
function columnClass(column) {
  return `${column > 1 ? "number" : ""}${[1, 2, 3, 5].includes(column) ? " extra" : ""}`;
}

/**
 * Make a bar for a share, which is also written beside it.
 * @param {number} fraction
 * @returns {HTMLElement}
 */
function meter(fraction) {
  const filled = element("span");
  filled.style.width = `${(100 * fraction).toFixed(1)}%`;
  return element("span", { class: "meter" }, filled);
}

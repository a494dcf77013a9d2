// The threshold of the chosen method on the chosen set: histogram, ROC and PR, what is accepted.

definePanel({
  id: "threshold",
  title: "Threshold",
  build(body) {
    const heading = element("p", { class: "lead" });
    const chart = element("div", { class: "chart draggable" });
    const slider = element("input", { type: "range", min: 0, step: 1, "aria-label": "Threshold" });
    const readout = element("dl", { class: "readout" });
    slider.addEventListener("input", () =>
      choose({ threshold: scoreAt(shownCurve(), Number(slider.value)) }),
    );
    body.append(heading, chart, slider, readout);
    /** @type {PlotFigure | null} */
    let figure = null;
    const drag = (/** @type {PointerEvent} */ event) => {
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
      drag(event);
    });
    chart.addEventListener("pointermove", (event) => {
      if (chart.hasPointerCapture(event.pointerId)) drag(event);
    });
    const draw = () => {
      const curve = shownCurve();
      const index = indexOf(curve, state.threshold);
      const point = pointAt(shownEvaluation(), curve, shownSet(), index);
      heading.textContent = `${state.method} on ${state.set}`;
      slider.max = String(curve.thresholds.length);
      slider.value = String(index);
      slider.setAttribute("aria-valuetext", spoken(point));
      readout.replaceChildren(...readouts(point));
      figure = histogramFigure(chart.clientWidth);
      chart.replaceChildren(...(figure ? [figure] : []));
    };
    new ResizeObserver(draw).observe(chart);
    draw();
    return draw;
  },
});

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
 * @param {Point} point
 * @returns {HTMLElement[]}
 */
function readouts(point) {
  /** @type {[string, string][]} */
  const rows = [
    ["ID accepted", percent(point.id / point.nId)],
    ["OOD accepted", percent(point.ood / point.nOod)],
  ];
  return rows.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)),
  );
}

/**
 * @param {number} width
 * @returns {PlotFigure | null}
 */
function histogramFigure(width) {
  const found = shownCurve().source.histograms[shownSet()];
  if (!found || !width) return null;
  const bins = (/** @type {Packed} */ packed) => {
    const counts = Array.from(unpacked(packed));
    const total = counts.reduce((sum, each) => sum + each, 0);
    const step = (found.high - found.low) / counts.length;
    return counts.map((count, at) => ({
      x1: found.low + at * step,
      x2: found.low + (at + 1) * step,
      share: (100 * count) / total,
    }));
  };
  return Plot.plot({
    className: "plot",
    width,
    height: 240,
    x: { label: `score of ${state.method}`, domain: [found.low, found.high] },
    y: { label: "images (%)" },
    marks: [
      Plot.rectY(bins(found.id_counts), { x1: "x1", x2: "x2", y: "share", fill: "var(--id)", inset: 0 }),
      Plot.rectY(bins(found.ood_counts), { x1: "x1", x2: "x2", y: "share", fill: "var(--ood)", fillOpacity: 0.5, inset: 0 }),
      Plot.ruleX([Math.min(Math.max(state.threshold, found.low), found.high)], { stroke: "currentColor", strokeWidth: 2 }),
    ],
  });
}

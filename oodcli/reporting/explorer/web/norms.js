// Lengths of the features of one run or two: of ID images and of the chosen OOD set.

definePanel({
  id: "norms",
  title: "Lengths of features",
  wanted: () => (payload.images?.norms.length ?? 0) > 0,
  build(body) {
    const norms = need(payload.images).norms;
    const same = element("input", { type: "checkbox", checked: true });
    const charts = norms.map((each) => {
      const chart = element("div", { class: "chart" });
      const name = need(payload.networks[each.network]).name;
      return { norms: each, chart, figure: element("figure", {}, element("figcaption", {}, element("strong", {}, name)), chart) };
    });
    if (norms.length > 1) {
      body.append(element("label", { class: "choice" }, same, " One axis for both runs"));
    }
    const legend = element("p", { class: "series" });
    body.append(legend, element("div", { class: "two" }, ...charts.map((each) => each.figure)), normTable(norms));
    const draw = () => {
      const high = Math.max(...norms.map((each) => each.high));
      const set = norms[0]?.sets.some((each) => each.name === state.set) ? state.set : need(norms[0]?.sets.at(-1)).name;
      legend.replaceChildren(
        element("span", {}, element("span", { class: "key" }), ` ID: ${need(norms[0]?.sets[0]).name}`),
        element("span", {}, element("span", { class: "key ood-key" }), ` OOD: ${set}`));
      for (const { norms: each, chart } of charts) {
        const width = chart.clientWidth;
        if (width) chart.replaceChildren(normFigure(each, set, width, same.checked ? high : each.high));
      }
    };
    same.addEventListener("change", draw);
    for (const { chart } of charts) new ResizeObserver(draw).observe(chart);
    draw();
    return (changed) => {
      if (changed.has("set")) draw();
    };
  },
});

/**
 * @param {FeatureNorms} norms
 * @param {string} set
 * @param {number} width
 * @param {number} high
 */
function normFigure(norms, set, width, high) {
  const bins = (/** @type {NormsOfSet | undefined} */ of) => (of ? barOutline(of.counts, 0, norms.high) : []);
  const ood = norms.sets.slice(1).find((each) => each.name === set);
  return Plot.plot({
    className: "plot",
    width,
    ariaLabel: `Histogram of the lengths of the features of ID images and of ${set}`,
    height: Math.max(200, Math.min(260, width / 2.2)),
    marginLeft: 44,
    marginBottom: 40,
    x: { label: "L2 norm of the features", domain: [0, high], ticks: Math.max(3, width / 90), labelAnchor: "center", labelArrow: "none", labelOffset: 36 },
    y: { label: "images (%)", ticks: 5 },
    marks: [
      ...histogramMarks(bins(norms.sets[0]), bins(ood)),
      Plot.ruleY([0]),
    ],
  });
}

/**
 * @param {ReadonlyArray<FeatureNorms>} norms
 * @returns {HTMLElement}
 */
function normTable(norms) {
  const heads = ["Run", "Data set", "Mean norm", "Ratio to ID", "AUROC of the norm"].map((text, at) =>
    element("th", { scope: "col", ...(at > 1 ? { class: "number" } : {}) }, text));
  const rows = norms.flatMap((each) =>
    each.sets.map((of, at) => {
      const own = need(each.sets[0]).mean;
      return element("tr", {},
        element("th", { scope: "row" }, need(payload.networks[each.network]).name),
        element("td", {}, at ? of.name : `${of.name} (ID)`),
        element("td", { class: "number" }, String(Number(of.mean.toPrecision(4)))),
        element("td", { class: "number" }, at && own ? (of.mean / own).toFixed(3) : ""),
        element("td", { class: "number" }, of.auroc === null ? "" : percent(of.auroc)));
    }));
  return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Lengths of features" },
    element("table", { class: "compact" }, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)));
}

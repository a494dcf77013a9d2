// L2 norms of the features of one run or two: of ID images and of the chosen OOD set.

definePanel({
  id: "norms",
  title: "Feature norms",
  wanted: () => (payload.images?.norms.length ?? 0) > 0,
  build(body) {
    const norms = need(payload.images).norms;
    const same = element("input", { type: "checkbox", checked: true });
    const charts = norms.map((each) => {
      const chart = element("div", { class: "chart" });
      const { name, training } = need(payload.networks[each.network]);
      return { norms: each, chart, figure: element("figure", {}, element("figcaption", {}, element("strong", {}, name), training ? ` trained with ${training}` : ""), chart) };
    });
    if (norms.length > 1) {
      body.append(element("label", { class: "choice" }, same, " One axis for both runs"));
    }
    const legend = element("p", { class: "series" });
    body.append(legend, element("div", { class: "two" }, ...charts.map((each) => each.figure)), ...aboutNorms(norms), normTable(norms));
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
    ariaLabel: `Histogram of the norms of the features of ID images and of ${set}`,
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
 * @returns {HTMLElement[]} What the numbers are, and how the norms of two runs compare.
 */
function aboutNorms(norms) {
  const [first, second] = norms.map((each) => ({ name: need(payload.networks[each.network]).name, mean: need(each.sets[0]).mean }));
  const said = [];
  if (first?.mean && second) {
    const ratio = second.mean / first.mean;
    said.push(`The mean norm of ID images of ${second.name} is ${ratio.toFixed(ratio < 0.1 ? 4 : 2)} times that of ${first.name}.`);
  }
  said.push("ID/OOD is the ratio of the mean norms, and AUROC that of the norm as a score. This is the L2 norm of the feature vector, the input of the last layer; " +
    "the methods featurenorm and norm take another norm, that of the activation map of a block, so their AUROC differs.");
  return [element("p", { class: "meaning" }, said.join(" "))];
}

/**
 * @param {ReadonlyArray<FeatureNorms>} norms
 * @returns {HTMLElement}
 */
function normTable(norms) {
  const heads = ["Data set", "Mean norm", "ID/OOD", "AUROC"].map((text, at) =>
    element("th", { scope: "col", ...(at ? { class: "number" } : {}) }, text));
  const means = norms.flatMap((each) => each.sets.map((of) => of.mean)).filter((each) => each > 0);
  // As many digits in all rows, so that the smallest has three significant ones.
  const digits = Math.min(8, Math.max(0, 2 - Math.floor(Math.log10(Math.min(...means, 100)))));
  const bodies = norms.map((each) => {
    const own = need(each.sets[0]).mean;
    const rows = each.sets.map((of, at) =>
      element("tr", {},
        element("th", { scope: "row", title: of.name }, at ? of.name : `${of.name} (ID)`),
        element("td", { class: "number" }, of.mean.toFixed(digits)),
        element("td", { class: "number" }, at && of.mean ? `×${(own / of.mean).toFixed(2)}` : ""),
        element("td", { class: "number" }, of.auroc === null ? "" : `${percent(of.auroc)} %`)));
    const { name, training } = need(payload.networks[each.network]);
    const head = element("tr", {}, element("th", { scope: "rowgroup", colspan: "4" }, training ? `${name}, trained with ${training}` : name));
    return element("tbody", {}, ...(norms.length > 1 ? [head] : []), ...rows);
  });
  return element("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Feature norms" },
    element("table", { class: "compact norms" }, element("thead", {}, element("tr", {}, ...heads)), ...bodies));
}

// The data of the page, the one choice that all panels show, and small helpers.

/** @type {Payload} */
const payload = JSON.parse(byId("explorer-data").textContent ?? "");

/** @type {Panel[]} */
const panels = [];

/**
 * Add a panel to the page, below those that were added before.
 * @param {Panel} panel
 */
function definePanel(panel) {
  panels.push(panel);
}

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no element ${id}`);
  return found;
}

/**
 * Make an element. Text is only ever set as text, so that no name can become markup.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | boolean>} [attributes] False leaves an attribute out.
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children);
  return made;
}

/**
 * Let a long name break behind its marks, and not within a word.
 * @param {string} name
 * @returns {(Node | string)[]}
 */
function breakable(name) {
  return name.split(/(?<=[+=:,/_-])(?=.)/).flatMap((part, at) => (at ? [element("wbr"), part] : [part]));
}

/**
 * Unpack the numbers of a text, see oodcli.reporting.explorer.packing.
 * @param {Packed} text
 * @returns {ArrayLike<number>}
 */
function unpacked(text) {
  const [kind = "", content = ""] = text.split(":");
  const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
  switch (kind) {
    case "u1": return bytes;
    case "u2": return new Uint16Array(bytes.buffer);
    case "u4": return new Uint32Array(bytes.buffer);
    case "f4": return new Float32Array(bytes.buffer);
    case "f8": return new Float64Array(bytes.buffer);
    default: throw new Error(`unknown type of numbers ${kind}`);
  }
}

/**
 * Write a fraction in percent, to the digit as the tables of ood: exact halves to the even digit.
 * @param {number} fraction
 * @param {number} [digits]
 */
function percent(fraction, digits = payload.digits) {
  const value = 100 * fraction;
  const rounded = value.toFixed(digits);
  // All digits of the number, which ends before the sixtieth if it is halfway.
  const whole = value.toFixed(60);
  const kept = whole.length - 60 + digits;
  if (!/^\.?50*$/.test(whole.slice(kept))) return rounded;
  const below = whole.slice(0, digits ? kept : kept - 1);
  return Number(below.at(-1)) % 2 === 0 ? below : rounded;
}

/** @param {number} count */
function counted(count) {
  return count.toLocaleString("en-US");
}

/** @param {number} score */
function scoreText(score) {
  return Number.isFinite(score) ? String(Number(score.toPrecision(5))) : "above every score";
}

/** @type {State} */
let state;
/** @type {((changed: ReadonlySet<keyof State>) => void)[]} */
const listeners = [];

/**
 * Change the choice, and have every panel show it.
 * @param {Partial<State>} changes
 */
function choose(changes) {
  const before = state;
  const wanted = { ...before, ...changes };
  // A threshold that was set by hand keeps its share of accepted ID images.
  const byHand = changes.threshold !== undefined;
  if (byHand) wanted.rule = shareAt(shownCurve(), wanted.threshold);
  state = consistent(wanted, byHand);
  const names = /** @type {(keyof State)[]} */ (Object.keys(state));
  const changed = new Set(names.filter((name) => state[name] !== before[name]));
  if (changed.size) for (const listener of listeners) listener(changed);
}

/**
 * Return the nearest choice that has scores.
 * @param {State} wanted
 * @param {boolean} byHand Whether the threshold was set, and not its rule.
 * @returns {State}
 */
function consistent(wanted, byHand = false) {
  const result = need(payload.results[wanted.result]);
  let { network, spectrum, method, set, groups, threshold } = wanted;
  const { rule, convention } = wanted;
  if (!result.networks.includes(network)) network = result.networks[0] ?? 0;
  const evaluations = need(payload.networks[network]).evaluations;
  const evaluation =
    evaluations.find((each) => each.spectrum === spectrum) ?? need(evaluations[0]);
  spectrum = evaluation.spectrum;
  const there = groupsOf(evaluation);
  const kept = groups.filter((group) => there.includes(group));
  if (kept.length !== groups.length) groups = kept;
  if (!groups.length) groups = there;
  const curve =
    evaluation.methods.find((each) => each.method === method) ?? need(evaluation.methods[0]);
  method = curve.method;
  const scored = evaluation.sets.filter((_, at) => curve.ood_accepted[at] !== null);
  const shown = scored.filter((each) => groups.includes(each.group));
  const hidden = groups !== state?.groups && !shown.some((each) => each.name === set);
  if (hidden || !scored.some((each) => each.name === set)) {
    set = worstOf(result, method, spectrum, shown.length ? shown : scored);
  }
  const moved =
    state === undefined ||
    method !== state.method || network !== state.network || spectrum !== state.spectrum;
  if (!byHand && (moved || typeof rule === "string" || rule !== state.rule)) {
    const at = evaluation.sets.findIndex((each) => each.name === set);
    threshold = thresholdBy(rule, evaluation, curveNamed(network, spectrum, method), at, convention);
  }
  return { ...wanted, network, spectrum, method, set, groups, threshold };
}

/**
 * Return the OOD set that a method separates worst by AUROC.
 * @param {ResultTable} result
 * @param {string} method
 * @param {string} spectrum
 * @param {ReadonlyArray<EvaluatedSet>} sets At least one.
 * @returns {string}
 */
function worstOf(result, method, spectrum, sets) {
  const row = result.auroc[result.methods.indexOf(method)] ?? [];
  const value = (/** @type {EvaluatedSet} */ { name }) =>
    row[result.columns.findIndex((each) => each.dataset === name && each.spectrum === spectrum)] ?? 1;
  return need([...sets].sort((a, b) => value(a) - value(b))[0]).name;
}

/**
 * @template T
 * @param {T | null | undefined} value
 * @returns {T}
 */
function need(value) {
  if (value === null || value === undefined) throw new Error("the data of the page is incomplete");
  return value;
}

/**
 * @param {Evaluation} evaluation
 * @returns {string[]}
 */
function groupsOf(evaluation) {
  return [...new Set(evaluation.sets.map((each) => each.group))];
}

/** @returns {ResultTable} */
function shownResult() {
  return need(payload.results[state.result]);
}

/** @returns {Network} */
function shownNetwork() {
  return need(payload.networks[state.network]);
}

/** @returns {Evaluation} */
function shownEvaluation() {
  return need(shownNetwork().evaluations.find((each) => each.spectrum === state.spectrum));
}

/** @returns {number} Index of the chosen set in the evaluation. */
function shownSet() {
  return shownEvaluation().sets.findIndex((each) => each.name === state.set);
}

/** @returns {Curve} */
function shownCurve() {
  return curveNamed(state.network, state.spectrum, state.method);
}

/** @returns {ShownConvention} */
function shownConvention() {
  return need(payload.conventions.find((each) => each.name === state.convention));
}

/** @type {Map<MethodCurve, Curve>} */
const curves = new Map();

/**
 * @param {number} network
 * @param {string} spectrum
 * @param {string} method
 * @returns {Curve}
 */
function curveNamed(network, spectrum, method) {
  const evaluation = need(payload.networks[network]).evaluations.find(
    (each) => each.spectrum === spectrum,
  );
  const source = need(need(evaluation).methods.find((each) => each.method === method));
  const found = curves.get(source);
  if (found) return found;
  const curve = {
    method,
    every: source.every,
    thresholds: unpacked(source.thresholds),
    id: unpacked(source.id_accepted),
    correct: source.correct_accepted === null ? null : unpacked(source.correct_accepted),
    ood: source.ood_accepted.map((each) => (each === null ? null : unpacked(each))),
    source,
  };
  curves.set(source, curve);
  return curve;
}

/**
 * Return the index of a threshold: the first that is not below the score.
 * @param {Curve} curve
 * @param {number} score
 * @returns {number} The number of thresholds if all are below.
 */
function indexOf(curve, score) {
  let [low, high] = [0, curve.thresholds.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (need(curve.thresholds[middle]) < score) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Return the score of a threshold; Infinity behind the last, where no image is accepted.
 * @param {Curve} curve
 * @param {number} index
 */
function scoreAt(curve, index) {
  return curve.thresholds[index] ?? Infinity;
}

/**
 * Return the highest threshold that at least a share of the ID images reach.
 * @param {Curve} curve
 * @param {number} share
 */
function thresholdAt(curve, share) {
  const wanted = share * need(curve.id[0]) - 1e-9;
  let index = 0;
  while (index + 1 < curve.id.length && need(curve.id[index + 1]) >= wanted) index += 1;
  return scoreAt(curve, index);
}

/**
 * Return the share of the ID images that reach a threshold.
 * @param {Curve} curve
 * @param {number} threshold
 */
function shareAt(curve, threshold) {
  return (curve.id[indexOf(curve, threshold)] ?? 0) / need(curve.id[0]);
}

/**
 * Return the threshold of a rule.
 * @param {Rule} rule
 * @param {Evaluation} evaluation
 * @param {Curve} curve
 * @param {number} set
 * @param {string} convention
 * @returns {number}
 */
function thresholdBy(rule, evaluation, curve, set, convention) {
  if (rule === 0) return Infinity;
  if (typeof rule === "number") return thresholdAt(curve, rule);
  if (rule === "fpr95") {
    return scoreAt(curve, curve.source.fpr95_at[convention]?.[set] ?? curve.thresholds.length);
  }
  // An ID image that is rejected counts as much as an OOD image that is accepted, or both rates do.
  const [idWeight, oodWeight] =
    rule === "errors" ? [1, 1] : [need(evaluation.sets[set]).n, evaluation.n_id];
  let [best, least] = [0, Infinity];
  for (let index = 0; index <= curve.thresholds.length; index += 1) {
    const { id, nId, ood } = pointAt(evaluation, curve, set, index);
    const errors = (nId - id) * idWeight + ood * oodWeight;
    if (errors < least) [best, least] = [index, errors];
  }
  return scoreAt(curve, best);
}

/**
 * Return what is accepted at a threshold.
 * @param {Evaluation} evaluation
 * @param {Curve} curve
 * @param {number} set
 * @param {number} index
 * @returns {Point}
 */
function pointAt(evaluation, curve, set, index) {
  return {
    id: curve.id[index] ?? 0,
    nId: evaluation.n_id,
    ood: curve.ood[set]?.[index] ?? 0,
    nOod: need(evaluation.sets[set]).n,
    correct: curve.correct === null ? null : (curve.correct[index] ?? 0),
  };
}

/**
 * Return the value of a metric in the overview; null where there is none.
 * @param {ResultTable} result
 * @param {Metric} metric
 * @param {string} convention
 * @param {number} row
 * @param {number} column
 */
function valueOf(result, metric, convention, row, column) {
  const rows = metric === "auroc" ? result.auroc : need(result.rates[convention])[metric];
  return rows[row]?.[column] ?? null;
}

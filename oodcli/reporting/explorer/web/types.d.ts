// What the scripts of the explorer share, and the parts of Observable Plot that they use.

type Metric = "auroc" | "fpr95" | "aupr_in" | "aupr_out";

/**
 * How a threshold is found: the highest that accepts a share of the ID images, or the one with the
 * fewest errors, the largest difference of TPR and FPR, or where FPR95 is measured on the chosen set.
 */
type Rule = number | "errors" | "difference" | "fpr95";

/** What is chosen on the page; every panel shows this one choice. */
interface State {
  /** Index in payload.results. */
  readonly result: number;
  /** Index in payload.networks: the run of the result; of a mean, the first. */
  readonly network: number;
  readonly spectrum: "plain" | "full";
  readonly convention: string;
  readonly metric: Metric;
  /** Groups that are shown; never empty. */
  readonly groups: ReadonlyArray<string>;
  /** Canonical name of the method. */
  readonly method: string;
  /** Name of the OOD set. */
  readonly set: string;
  /** What the threshold is to fulfil for every method, run and set. */
  readonly rule: Rule;
  /** Lowest accepted score; Infinity accepts no image. */
  readonly threshold: number;
}

/** A part of the page with a heading of its own. */
interface Panel {
  readonly id: string;
  readonly title: string;
  /** Whether the data has anything for this panel; without it, always. */
  readonly wanted?: () => boolean;
  /** Fills the panel once, and returns what is called after every change of the state. */
  readonly build: (body: HTMLElement) => (changed: ReadonlySet<keyof State>) => void;
}

/** A curve of the payload with its numbers unpacked. */
interface Curve {
  readonly method: string;
  readonly every: boolean;
  readonly thresholds: ArrayLike<number>;
  readonly id: ArrayLike<number>;
  readonly correct: ArrayLike<number> | null;
  readonly ood: ReadonlyArray<ArrayLike<number> | null>;
  readonly source: MethodCurve;
}

/** What is accepted at a threshold. */
interface Point {
  readonly id: number;
  readonly nId: number;
  readonly ood: number;
  readonly nOod: number;
  readonly correct: number | null;
}

/** Part of the page without the explorer: marks a region that goes on to the right. */
declare function watchScroll(region: HTMLElement): void;

interface PlotScale {
  readonly apply: (value: number) => number;
  readonly invert: (position: number) => number;
}
type PlotFigure = (SVGSVGElement | HTMLElement) & {
  scale(name: string): PlotScale | undefined;
};
declare const Plot: {
  plot(options: object): PlotFigure;
  rectY(data: ReadonlyArray<unknown>, options: object): object;
  areaY(data: ReadonlyArray<unknown>, options: object): object;
  line(data: ReadonlyArray<unknown>, options: object): object;
  dot(data: ReadonlyArray<unknown>, options: object): object;
  ruleX(data: ReadonlyArray<unknown>, options?: object): object;
  ruleY(data: ReadonlyArray<unknown>, options?: object): object;
};

/** A score of an image by a method. */
interface MethodScore {
  readonly method: string;
  readonly score: number | null;
  /** Share of the ID images whose score is below. */
  readonly percentile: number | null;
  /** Whether it is accepted at 95 % TPR; null where not known. */
  readonly accepted: boolean | null;
}

/** A training image near an image. */
interface NearImage {
  readonly sheets: Sheets;
  readonly number: number;
  readonly name: string;
  readonly label: string | null;
  readonly distance: number;
}

/** An image that can be opened. */
interface ShownImage {
  /** Index in payload.networks. */
  readonly network: number;
  readonly sheets: Sheets;
  readonly number: number;
  readonly name: string;
  readonly set: string;
  readonly isId: boolean;
  readonly truth: string | null;
  readonly predicted: string | null;
  readonly scores: () => MethodScore[];
  readonly nearest: () => NearImage[];
}

type D3Symbol = { readonly draw: (context: CanvasPath, size: number) => void };
declare const d3: {
  readonly symbolCircle: D3Symbol;
  readonly symbolSquare: D3Symbol;
  readonly symbolTriangle: D3Symbol;
  readonly symbolDiamond: D3Symbol;
  readonly symbolCross: D3Symbol;
  readonly symbolStar: D3Symbol;
  readonly symbolWye: D3Symbol;
  symbol(type: D3Symbol, size: number): () => string | null;
  scaleLinear(domain: [number, number], range: [number, number]): (value: number) => number;
  polygonContains(polygon: ReadonlyArray<[number, number]>, point: [number, number]): boolean;
};

// Written by: python -m oodcli.reporting.explorer.typescript

/** Arrays of numbers as text of a page: base64 of little-endian numbers, with their type. */
type Packed = string;

/** A definition of FPR95 and AUPR, see :class:`oodcli.metrics.Convention`. */
interface ShownConvention {
  readonly name: string;
  readonly description: string;
  readonly positive: "id" | "ood";
}

/** A data set of the overview, or an average of several. */
interface ResultColumn {
  readonly label: string;
  readonly dataset: string;
  readonly group: string;
  readonly spectrum: "plain" | "full";
  readonly n_ood: number;
}

/** The metrics that depend on the convention, by method and column. */
interface Rates {
  readonly fpr95: ReadonlyArray<ReadonlyArray<number | null>>;
  readonly aupr_in: ReadonlyArray<ReadonlyArray<number | null>>;
  readonly aupr_out: ReadonlyArray<ReadonlyArray<number | null>>;
}

/** The results of one run, or the mean of runs that are averaged. */
interface ResultTable {
  readonly name: string;
  readonly networks: ReadonlyArray<number>;
  readonly methods: ReadonlyArray<string>;
  readonly labels: ReadonlyArray<string>;
  readonly columns: ReadonlyArray<ResultColumn>;
  readonly auroc: ReadonlyArray<ReadonlyArray<number | null>>;
  readonly rates: Readonly<Record<string, Rates>>;
}

/** Scores of ID and OOD images in bins of equal width. */
interface Histogram {
  readonly low: number;
  readonly high: number;
  readonly id_counts: Packed;
  readonly ood_counts: Packed;
}

/** Accepted images by class, at some of the thresholds of a method. */
interface ClassCounts {
  readonly places: Packed;
  readonly id_accepted: Packed | null;
  readonly ood_accepted: ReadonlyArray<Packed | null>;
}

/** What a method accepts at every threshold that the page can show. */
interface MethodCurve {
  readonly method: string;
  readonly every: boolean;
  readonly thresholds: Packed;
  readonly id_accepted: Packed;
  readonly correct_accepted: Packed | null;
  readonly ood_accepted: ReadonlyArray<Packed | null>;
  readonly histograms: ReadonlyArray<Histogram | null>;
  readonly fpr95_at: Readonly<Record<string, ReadonlyArray<number | null>>>;
  readonly classes: ClassCounts | null;
}

/** An OOD set of an evaluation. */
interface EvaluatedSet {
  readonly name: string;
  readonly group: string;
  readonly n: number;
  readonly classes: ReadonlyArray<number> | null;
  readonly taken: ReadonlyArray<number> | null;
}

/** ID images against OOD sets. */
interface Evaluation {
  readonly spectrum: "plain" | "full";
  readonly id_name: string;
  readonly n_id: number;
  readonly n_correct: number | null;
  readonly id_by: "label" | "prediction" | null;
  readonly id_classes: ReadonlyArray<number> | null;
  readonly sets: ReadonlyArray<EvaluatedSet>;
  readonly methods: ReadonlyArray<MethodCurve>;
}

/** A run, or the network of score files. */
interface Network {
  readonly name: string;
  readonly arch: string;
  readonly training: string;
  readonly classes: ReadonlyArray<string>;
  readonly evaluations: ReadonlyArray<Evaluation>;
}

/** Everything that the explorer of a report knows. */
interface Payload {
  readonly schema: number;
  readonly digits: number;
  readonly convention: string;
  readonly conventions: ReadonlyArray<ShownConvention>;
  readonly results: ReadonlyArray<ResultTable>;
  readonly networks: ReadonlyArray<Network>;
  readonly limits: ReadonlyArray<string>;
  readonly images: ImagePanels | null;
}

/** A data set whose images are shown. */
interface ImageSource {
  readonly name: string;
  readonly group: string;
  readonly n: number;
}

/** Pictures of one size, side by side in the rows of sheets. */
interface Sheets {
  readonly files: ReadonlyArray<string>;
  readonly width: number;
  readonly height: number;
  readonly columns: number;
  readonly per_sheet: number;
  readonly count: number;
}

/** Images in the order in which the other records number them, from 0. */
interface ListedImages {
  readonly sets: Packed;
  readonly rows: Packed;
  readonly names: ReadonlyArray<string>;
  readonly labels: Packed;
  readonly pictures: Sheets;
}

/** Training images that are near some images. */
interface TrainingImages {
  readonly n: number;
  readonly names: ReadonlyArray<string>;
  readonly labels: Packed;
  readonly pictures: Sheets;
  readonly nearest: Packed;
  readonly distances: Packed;
}

/** The images of a network that methods judge most wrongly. */
interface ImageStrip {
  readonly network: number;
  readonly methods: ReadonlyArray<string>;
  readonly thresholds: Packed;
  readonly sets: ReadonlyArray<ImageSource>;
  readonly images: ListedImages;
  readonly predicted: Packed | null;
  readonly scores: Packed;
  readonly percentiles: Packed;
  readonly id_images: ReadonlyArray<Packed>;
  readonly ood_images: ReadonlyArray<ReadonlyArray<Packed>>;
  readonly odd: Packed;
  readonly rejected_by: Packed;
  readonly n_odd: number;
  readonly training: TrainingImages | null;
}

/** Images in two dimensions. */
interface Projection {
  readonly kind: "pca" | "tsne";
  readonly points: Packed;
  readonly shares: ReadonlyArray<number>;
}

/** A map of the features of one network. */
interface MapView {
  readonly network: number;
  readonly projections: ReadonlyArray<Projection>;
  readonly predicted: Packed | null;
  readonly methods: ReadonlyArray<string>;
  readonly percentiles: Packed;
}

/** The same images by the features of one network, or of two. */
interface FeatureMap {
  readonly sets: ReadonlyArray<ImageSource>;
  readonly images: ListedImages;
  readonly views: ReadonlyArray<MapView>;
}

/** L2 norms of the features of a data set, the input of the last layer. */
interface NormsOfSet {
  readonly name: string;
  readonly mean: number;
  readonly auroc: number | null;
  readonly counts: Packed;
}

/** L2 norms of the features of one network. */
interface FeatureNorms {
  readonly network: number;
  readonly high: number;
  readonly sets: ReadonlyArray<NormsOfSet>;
}

/** What the page shows of images and of features. */
interface ImagePanels {
  readonly strips: ReadonlyArray<ImageStrip>;
  readonly map: FeatureMap | null;
  readonly norms: ReadonlyArray<FeatureNorms>;
}

"""Methods recorded as a graph score as they do themselves, in ONNX Runtime."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from oodcli.activations import Activations, ActivationSet, Head, Reference, Words
from oodcli.errors import UndefinedMethodError
from oodcli.methods import METHODS, parse_method
from oodcli.methods._traced import (
    TracedBatch,
    bank_bytes,
    check_traceable,
    traced,
)

WIDTH, CLASSES, BLOCKS = 24, 5, 3
EXPORTABLE = {name for name, method in METHODS.items() if method.exportable}
EXTRA = (
    "ash-s:percentile=97+msp", "scale:signed=clamp+maxlogit", "knn:k=1",
    "ensemble:knn+react+featurenorm",
)  # fmt: skip


def rows(n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features with ties and zeros, block norms and labels."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, WIDTH, generator=generator).clamp(min=0)
    features[:, :4] = (features[:, :4] * 2).round() / 2
    features[3] = 0
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    return features, torch.rand(n, BLOCKS, generator=generator), labels


@pytest.fixture(scope="module")
def head() -> Head:
    generator = torch.Generator().manual_seed(5)
    weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((CLASSES, WIDTH), (CLASSES,))
    )
    kept = dict.fromkeys(("confidence", "background"), (weight[:1] - weight[1:2], bias[:1]))
    return Head(weight, bias, kept=kept)


@pytest.fixture(scope="module")
def reference(head: Head) -> Reference:
    features, norms, labels = rows(300, seed=1)
    logits = head(features)
    train = ActivationSet.of(Activations(logits, features, norms, logits.argmax(dim=1)))
    return Reference(
        head=head,
        load_train=lambda: train,
        load_labels=lambda: labels,
        load_jigsaw=lambda: train,
        load_jigsaw_features=lambda: train,
        load_calibration=lambda: train,
        load_calibration_labels=lambda: labels,
        n_blocks=BLOCKS,
    )


class Scores(nn.Module):
    """The scores of many methods, each with its head, for features and norms side by side."""

    def __init__(self, heads: list[Head], scorers: list) -> None:
        super().__init__()
        self.heads = heads
        self.scorers = [traced(scorer) for scorer in scorers]

    def forward(self, both: Tensor) -> tuple[Tensor, ...]:
        features, norms = both[:, :WIDTH], both[:, WIDTH:]
        batches = {}
        for head in self.heads:
            logits = head(features)
            batches[id(head)] = TracedBatch(logits, features, norms, logits.argmax(dim=1))
        pairs = zip(self.heads, self.scorers, strict=True)
        return tuple(score(batches[id(head)]) for head, score in pairs)


def with_texts(reference: Reference) -> Reference:
    """Return the reference of a zero-shot classifier, with 30 negative words."""
    generator = torch.Generator().manual_seed(8)
    rows = nn.functional.normalize(torch.randn(CLASSES + 30, WIDTH, generator=generator), dim=1)
    head = Head(2 * rows[:CLASSES], torch.zeros(CLASSES), scale=2.0)
    words = Words(rows[CLASSES:], (20, 10))
    return replace(reference, head=head, load_words=lambda: words)


def specs() -> list:
    """Return every method that can be recorded, shapers with a scorer."""
    bare = [*sorted(EXPORTABLE), "ash-b:percentile=20"]
    names = [f"{n}+energy" if METHODS[n.partition(":")[0]].is_shaper else n for n in bare]
    return [parse_method(name) for name in (*names, *EXTRA)]


def test_every_method_scores_in_onnxruntime_as_it_does_itself(reference: Reference) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    wanted = specs()
    texts = with_texts(reference)
    references = [texts if METHODS[s.parts[0].name].is_zero_shot else reference for s in wanted]
    heads = [each.head for each in references]
    scorers = [spec.fit(each).detector for spec, each in zip(wanted, references, strict=True)]
    features, norms, _ = rows(50, seed=2)
    program = torch.onnx.export(
        Scores(heads, scorers).eval(),
        (torch.cat([features, norms], dim=1),),
        dynamo=True,
        input_names=["both"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for n in (50, 17, 1):
        some = slice(0, n)
        got = session.run(None, {"both": torch.cat([features, norms], dim=1)[some].numpy()})
        for spec, own, scorer, values in zip(wanted, heads, scorers, got, strict=True):
            logits = own(features[some])
            batch = Activations(logits, features[some], norms[some], logits.argmax(dim=1))
            torch.testing.assert_close(
                torch.from_numpy(values).double(),
                scorer.score(batch).double(),
                rtol=2e-5,
                atol=2e-5,
                msg=lambda text, name=spec.canonical: f"{name}: {text}",
            )


def test_ties_are_broken_as_the_method_breaks_them(head: Head, reference: Reference) -> None:
    """In one process torch may break them otherwise; ONNX promises the first of equals."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    scorer = parse_method("ash-p:percentile=80+energy").fit(reference).detector
    features = torch.zeros(20, WIDTH)
    features[:, ::2] = 1.0
    features += torch.arange(20)[:, None] * (torch.arange(WIDTH) % 4 == 0)
    both = torch.cat([features, torch.zeros(20, BLOCKS)], dim=1)
    program = torch.onnx.export(
        Scores([head], [scorer]).eval(), (both,), dynamo=True, input_names=["both"],
        dynamic_shapes=({0: torch.export.Dim("n")},), verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    logits = head(features)
    batch = Activations(logits, features, both[:, WIDTH:], logits.argmax(dim=1))
    (got,) = session.run(None, {"both": both.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), scorer.score(batch), rtol=1e-5, atol=1e-5)


def test_methods_that_look_at_data_or_the_network_are_refused() -> None:
    for name in ("odin", "openmax", "rankfeat+energy"):
        with pytest.raises(UndefinedMethodError, match="these can: ash-b, ") as refused:
            check_traceable(parse_method(name), what="an ONNX file")
        assert f"{name.partition('+')[0]} cannot be exported as an ONNX file" in str(refused.value)
    check_traceable(parse_method("react+msp"), what="an ONNX file")


def test_the_size_of_a_bank_is_known(reference: Reference) -> None:
    assert bank_bytes(parse_method("knn").fit(reference).detector) == 300 * WIDTH * 4
    assert bank_bytes(parse_method("mds").fit(reference).detector) == 0

"""Tables in LaTeX: what stands in the source, and that it compiles."""

import shutil
import subprocess
from pathlib import Path

import pytest

from oodcli.cli.render.formats.latex import escaped, write_latex
from oodcli.cli.render.formats.table import Cell, Column, Table

HOSTILE = r"50% & $1_000 #3 \input{/etc/passwd} {x} ~^ <a>|`é ž Ω 名 ± ↓ \\ [0] -- \n"

WIDE = Table(
    title=("A title with 95 %", "and a second line."),
    columns=(
        Column("method", "Method"),
        Column("a", "FPR95 ↓", right=True, over="SVHN_1"),
        Column("b", "AUROC ↑", right=True, over="SVHN_1"),
        Column("bar", "", bar=True),
    ),
    rows=(
        {
            "method": Cell("msp"),
            "a": Cell("1.00 ± 0.50", bold=True),
            "b": Cell("[2.0, 3.0]", second=True),
            "bar": Cell(""),
        },
        {"method": Cell("[x]"), "a": Cell(""), "b": Cell("4.00"), "bar": Cell("")},
    ),
    sections=frozenset({0}),
    notes=("a note",),
)

SOURCE = r"""% needs \usepackage{booktabs}
\begin{table}[t]
\centering
\small
\setlength{\tabcolsep}{4pt}
\caption{A title with 95 \%; and a second line.}
\begin{tabular}{@{}lrr@{}}
\toprule
 & \multicolumn{2}{c}{SVHN\_1} \\
\cmidrule(lr){2-3}
Method & FPR95 $\downarrow$ & AUROC $\uparrow$ \\
\midrule
msp & \textbf{1.00 $\pm$ 0.50} & \underline{[2.0, 3.0]} \\
\midrule
{}[x] &  & 4.00 \\
\bottomrule
\end{tabular}
\par\smallskip{\footnotesize a note.\par}
\end{table}
"""


def test_the_source() -> None:
    assert write_latex(WIDE) == SOURCE


def test_many_columns_take_both_columns_of_the_page() -> None:
    columns = tuple(Column(str(index), "x") for index in range(7))
    row = {column.key: Cell("1") for column in columns}
    assert r"\begin{table*}[t]" in write_latex(Table(("t",), columns, (row,)))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a_b&c%d#e$f{g}h", r"a\_b\&c\%d\#e\$f\{g\}h"),
        ("\\input{x}", r"\textbackslash{}input\{x\}"),
        ("~^<>|", r"\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"),
        ("Grün, café, Žižek", r"Gr\"{u}n, caf\'{e}, \v{Z}i\v{z}ek"),
        ("名", "[U+540D]"),
        ("a\nb\x07c", r"a b\textbackslash{}x07c"),
    ],
)
def test_what_comes_from_outside_is_escaped(text: str, source: str) -> None:
    assert escaped(text) == source


def test_everything_is_plain_ascii() -> None:
    assert escaped(HOSTILE).isascii()


@pytest.mark.parametrize("engine", ["pdflatex", "tectonic"])
def test_it_compiles(engine: str, tmp_path: Path) -> None:
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed")
    rows = ({"method": Cell(HOSTILE), "a": Cell(HOSTILE), "b": Cell(HOSTILE), "bar": Cell("")},)
    hostile = Table((HOSTILE,), WIDE.columns, (*WIDE.rows, *rows), notes=(HOSTILE,))
    (tmp_path / "table.tex").write_text(write_latex(WIDE) + write_latex(hostile))
    paper = tmp_path / "paper.tex"
    paper.write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n"
        "\\begin{document}\\input{table}\\end{document}\n"
    )
    options = ["-interaction=nonstopmode", "-halt-on-error"] if engine == "pdflatex" else []
    done = subprocess.run(
        [engine, *options, paper.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Undefined" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000

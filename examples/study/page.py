"""The one page of a report: what was asked, what was found, and the tables that say so."""

import textwrap
from collections.abc import Iterator
from typing import Any

from study.means import MEASURES
from study.scores import costs
from study.tables import Line, Table, difference_lines, markdown, spread


PAGE = """# What the study found

Rendered by

    {command}

{about}

## The answer

{answers}

*Better* and *worse* are resolved differences: their 95 % interval excludes 0, over two seeds or more. About one
comparison in twenty looks resolved by chance alone.

{tables}
## How to read the tables

The first line has accuracies in percent. The other lines have points over the first, and 95 % intervals over rows and
seeds. **Bold** is resolved. Costs are times to those of plain BERT with the same weights.

{legend}
## The rest

{made} of the {planned} planned runs were made.

- [tables.md](tables.md): every table, and how it was measured; figures lie beside it.
- [The runs]({runs}): a line of JSON each, with the answers row by row.
- [The plan]({plan}): the settings of every run.
{more}"""


def tables_of(summary: dict[str, str], found: dict[str, list[Table]]) -> dict[str, Table]:
    """Heading -> the first table of the part or score."""
    return {heading: found[name][0] for heading, name in summary.items() if name in found}


def answers(tables: dict[str, Table]) -> str:
    """An item a table: what is resolved of each model that was run."""
    items = (f"- **{heading}**, over {table.base}. {' '.join(said(table))}" for heading, table in tables.items())
    return "\n".join(textwrap.fill(item, 120, subsequent_indent="  ", break_on_hyphens=False) for item in items)


def said(table: Table) -> Iterator[str]:
    if not table.apart:
        yield "No differences: they take two seeds of every task."
    for model in table.over:
        of_model = {m: table.apart[m][model] for m in MEASURES if model in table.apart.get(m, {})}
        signs = {m: d["difference"] > 0 for m, d in of_model.items() if d["resolved"]}
        words = [
            f"{word} in {' and '.join(filter(None, (', '.join(measures[:-1]), measures[-1])))}"
            for word, sign in (("better", True), ("worse", False))
            if (measures := [m for m, s in signs.items() if s == sign])
        ]
        if of_model:
            over = f" over `{table.over[model]}`" * (len(table.bases) > 1)
            yield f"`{model}`{over}: {', '.join(words) or 'nothing resolved'}."


def summary_lines(table: Table) -> list[Line]:
    """The first model's accuracies, and the others' points over it; those of all where there are no others."""
    if not table.apart or not table.lines:
        return table.lines or difference_lines(table)
    first, *others = zip(table.cells, [*table.lines[:1], *difference_lines(table)], table.lines, strict=False)
    shown = [measure for measure in MEASURES if measure in table.apart]
    priced = any(any(costs(cell).values()) for cell in table.cells)
    compared = {model for of in table.apart.values() for model in of}
    lines = []
    for cell, values, line in [first, *(other for other in others if other[0].model in compared)]:
        prices = {name: spread(ratios, 2) for name, ratios in costs(cell).items()} if priced else {}
        lines.append({"": cell.model, "seeds": line["seeds"], **{m: values[m] for m in shown}, **prices})
    return lines


def page(tables: dict[str, Table], **words: Any) -> str:
    texts = (
        f"## {heading}\n\n{table.caption}\n\n{markdown(summary_lines(table))}\n" for heading, table in tables.items()
    )
    return PAGE.format(tables="\n".join(texts), answers=answers(tables), **words)

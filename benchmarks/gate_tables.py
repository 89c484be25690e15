"""The tables of the gate, for ``report.py``."""

from __future__ import annotations

from typing import Any

from .tables import pick, table

PLANTED = (
    *("planted", "old", "true gain", "the loop says", "checks", "expelled"),
    *("“score ≥ old” on 100", "live pairs alone"),
)
DICE = (
    *("the new one is", "questions", "promoted", "rejected", "waits"),
    *("questions it took", "“score ≥ old” lets in"),
)


def dice_table_rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each true gain and number of questions."""
    lines = []
    for row in pick(result, part="dice"):
        runs = row["runs"]
        gain = f"{100 * row['gain']:+.0f} points" if row["gain"] else "equal"
        took = row["median_questions"]
        waits = runs - row["promoted"] - row["rejected"]
        shares = [f"{each / runs:.1%}" for each in (row["promoted"], row["rejected"], waits)]
        asked, old_rule = f"{row['questions']:,}", f"{row['at_least_as_good'] / runs:.0%}"
        lines.append([gain, asked, *shares, f"{took:,.0f}" if took else "–", old_rule])
    return lines


def planted_table_rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each plant."""
    lines = []
    for row in pick(result, part="planted"):
        checks = ", ".join(f"{name} {state}" for name, state in row["checks"].items())
        pairs = f"{row['live_won']} won, {row['live_lost']} lost"
        live = f"{row['live_word']} ({pairs}"
        live += f"; after {row['live_questions']:,})" if row["live_questions"] else ")"
        rule = "lets it in" if row["at_least_as_good"] else "keeps it out"
        expelled = ", ".join(row["expelled"]) or "–"
        gain = f"{100 * row['true_gain']:+.1f} points"
        told = [row["planted"], f"{row['old']:.1%}", gain, row["word"], checks, expelled]
        lines.append([*told, rule, live])
    return lines


def gate_note(result: dict[str, Any]) -> str:
    """What the two tables show, and the first of them."""
    settings = result["settings"]
    return "\n\n".join(
        [
            "Adapters of dice: the old one is right in 90% of the questions; "
            f"{settings['runs']:,} runs, a look at the E-value after each question, α = 5%. "
            "“Questions it took”: the median of the promoted.",
            table(DICE, dice_table_rows(result)),
            "Planted on the shipped base, through `minilora.jobs.Loop`: users' feedback is more of "
            "the same (nothing), poisoned by one source (every Hull is at 100%), careless from all "
            f"(only the first reading), or of a new kind that is 3% of {settings['live']:,} live "
            "questions (improvement). “True gain” is on those live questions. Where a round "
            "expelled a source, its line is about the adapter without it; checks as they stood "
            "then. One seed.",
        ]
    )

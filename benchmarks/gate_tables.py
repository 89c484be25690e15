"""The tables of the gate, for ``report.py``."""

from __future__ import annotations

from typing import Any

from .tables import pick, table

PLANTED = (
    *("planted", "old", "true gain", "the loop says", "after", "checks", "expelled"),
    *("‖ΔW‖, times the old one's", "“score ≥ old” on 100"),
)
DICE = (
    *("the new one is", "answers differ in", "questions", "promoted", "rejected", "waits"),
    *("decided after", "needed", "“score ≥ old” lets in"),
)


def dice_table_rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each true gain, share of differing answers and number of questions."""
    lines = []
    for row in pick(result, part="dice"):
        runs = row["runs"]
        gain = f"{100 * row['gain']:+.0f} points" if row["gain"] else "equal"
        took, needed = row["median_questions"], row["needed"] if row["gain"] > 0 else None
        waits = runs - row["promoted"] - row["rejected"]
        shares = [f"{each / runs:.1%}" for each in (row["promoted"], row["rejected"], waits)]
        asked, old_rule = f"{row['questions']:,}", f"{row['at_least_as_good'] / runs:.0%}"
        counts = [f"{each:,.0f}" if each else "–" for each in (took, needed)]
        lines.append([gain, f"{row['differing']:.1%}", asked, *shares, *counts, old_rule])
    return lines


def planted_table_rows(result: dict[str, Any]) -> list[list[str]]:
    """A line for each plant."""
    lines = []
    for row in pick(result, part="planted"):
        checks = ", ".join(f"{name} {state}" for name, state in row["checks"].items())
        won, lost, asked = row["exam"]
        rule = "lets it in" if row["at_least_as_good"] else "keeps it out"
        expelled = ", ".join(row["expelled"]) or "–"
        gain = f"{100 * row['true_gain']:+.1f} points"
        after = f"{asked:,} questions ({won} won, {lost} lost)"
        told = [row["planted"], f"{row['old']:.1%}", gain, row["word"], after, checks, expelled]
        lines.append([*told, f"{row['norm']:.2f}", rule])
    return lines


def gate_note(result: dict[str, Any]) -> str:
    """What the two tables show, and the first of them."""
    settings = result["settings"]
    shares = {row["new_share"] for row in pick(result, part="planted")}
    new = " or ".join(f"{share:.0%}" for share in sorted(shares))
    return "\n\n".join(
        [
            f"Adapters of dice: {settings['runs']:,} runs, α = 5%, a look after each 100 "
            "questions; a gain of less than 2 points is not worth a change. “Decided after”: the "
            "median of those that are decided by then. “Needed”: ln 20 divided by the expected log "
            "growth a question of the best bet, by one who knows the gain "
            "(`minilora/jobs/pairs.py`); no bet proves it in fewer on average. For 3 points less "
            "it is not given: the gate has to refute a gain of 2, not to prove a loss. “score ≥ "
            "old”: on 100 questions.",
            table(DICE, dice_table_rows(result)),
            "Planted on the shipped base, through `minilora.jobs.Loop`: users' feedback confirms "
            "what the old one was taught (equal), is poisoned by one source (every Hull is at "
            "100%), careless from all (only the first reading), or "
            f"{settings['feedback'] // 3} more of the same and {settings['feedback']} of a new "
            f"kind, which is {new} of the questions (improvement). "
            f"The exam draws from {settings['live']:,} reserved questions until it is decided; "
            f"“true gain” is on {settings['live']:,} others. Where a round expelled a source, its "
            "line is about the adapter without it. "
            f"Seeds: {', '.join(map(str, settings['seeds']))}.",
        ]
    )

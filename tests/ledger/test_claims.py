"""The table that is often repeated: what the plan says, and what it would say of other settings."""

from minilora import LoraConfig, ledger
from minilora.ledger.claims import CONFIG, TABLE


def test_every_row_trains_and_the_larger_ones_serve_in_four_bits_only():
    rows = list(ledger.check_claims())
    assert [(row.use, row.holds("16 bits"), row.holds("4 bits")) for row in rows] == [
        *(("train", True, True), ("serve", True, True)),  # 7B
        *(("train", True, True), ("serve", False, True)),  # 13B: 26 GB of weights, 24 GB of card
        *(("train", True, True), ("serve", False, True)),  # 70B: 138 GB
    ]


def test_the_rows_are_the_plans_of_their_settings():
    for row, (model, use, card, size, count) in zip(ledger.check_claims(), TABLE, strict=True):
        assert (row.model, row.use, row.card, row.size, row.cards) == (
            model,
            use,
            card,
            size,
            count,
        )
        if use == "train":
            plan = ledger.plan_cards(model, CONFIG, checkpointing=True)
            assert row.needed["16 bits"] == plan.shared(count)
        else:
            plan = ledger.plan_serving(model, LoraConfig(16, 32, "all-linear"), four_bit=True)
            assert row.needed["4 bits"] == plan.total

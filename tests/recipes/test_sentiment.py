"""The recipe of the sentences: what it reads, splits and prints."""

import json

from minilora.recipes.sentiment import METHODS, sentences, table


def test_each_text_stands_on_one_side(tmp_path):
    rows = [{"text": f" sentence {i % 40} ", "class": i % 2} for i in range(80)]
    (tmp_path / "sentences.json").write_text(json.dumps({"rows": rows}))
    learn, test = sentences(tmp_path, test=10)
    assert (len(learn), len(test)) == (30, 10)
    assert not {row.text for row in learn} & {row.text for row in test}
    assert sentences(tmp_path, test=10) == (learn, test)


def test_the_table_has_the_mean_and_every_seed():
    rows = [
        {"method": "LoRA", "accuracy": share, "trained": 1000, "seconds": 2.0}
        for share in (0.9, 0.8)
    ]
    assert table(rows).splitlines()[-1] == "| LoRA | 1,000 | 85.0% (90.0, 80.0) | 2 |"
    assert list(METHODS) == ["frozen + head", "LoRA + head", "full"]

import json

from agents import latency


def test_it_measures_every_way_to_answer(monkeypatch, capsys):
    monkeypatch.setattr(latency, "_SHOWN", 3)
    assert latency.main(["--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "dysharp/latency/1"
    names = [row["name"] for row in document["rows"]]
    assert names[:2] == ["one answer, predict of Stable-Baselines3", "one answer, the scorer in torch"]
    assert all("width 64 in the engine" in name for name in names[2:]) and len(names) == 4
    assert all(row["value"] > 0 and row["cpu_s"] > 0 for row in document["rows"])

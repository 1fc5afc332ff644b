import json

import lepton_train as lt
import pytest
from lepton_train.cli import main


def test_show(saved, capsys, tmp_path):
    assert main(["bundle", "show", str(saved)]) == 0
    text = capsys.readouterr().out
    assert "mlp" in text
    assert "24 x 32" in text
    assert main(["bundle", "show", str(saved), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["metadata"]["name"] == "mlp"
    assert main(["bundle", "show", str(saved), "--json", str(tmp_path / "show.json")]) == 0
    assert json.loads((tmp_path / "show.json").read_text()) == values


def test_verify(saved, capsys):
    assert main(["bundle", "verify", str(saved)]) == 0
    assert "golden output" in capsys.readouterr().out
    digest = lt.bundle.verify(saved).digest
    assert main(["bundle", "verify", str(saved), "--digest", digest, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["ok"]
    assert values["digest"] == digest


def test_what_fails_is_one_line_and_1(saved, capsys):
    assert main(["bundle", "verify", str(saved), "--digest", "0"]) == 1
    assert capsys.readouterr().err.startswith("lepton bundle: bundle: digest must be 0, got")
    (saved / "model.pkl").write_bytes(b"\x80\x04.")
    for action in ("show", "verify"):
        assert main(["bundle", action, str(saved)]) == 1
        assert "'model.pkl' is a pickle" in capsys.readouterr().err
    assert main(["bundle", "verify", str(saved / "no")]) == 1


def test_a_bundle_that_does_not_reproduce_ends_with_1(saved, reseal, capsys):
    text = (saved / "manifest.json").read_text().replace('"torch": "2.10"', '"torch": "99"', 1)
    (saved / "manifest.json").write_text(text)
    reseal(saved)
    assert main(["bundle", "verify", str(saved)]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["bundle"], ["bundle", "eat"], ["bundle", "verify"]])
def test_bad_arguments_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: lepton bundle" in capsys.readouterr().err


def test_help_has_examples(capsys):
    for arguments in (["bundle"], ["bundle", "show"], ["bundle", "verify"]):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--help"])
        assert stop.value.code == 0
        assert "example: lepton bundle" in capsys.readouterr().out

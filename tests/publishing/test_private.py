"""Secrets and paths: each kind is found, by file and line, in texts, in metadata of weights and of pictures; and is
shown by its beginning alone.  What only looks like one is left in peace."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from smart_train.core.errors import PublishError
from smart_train.publishing.secrets import SHOWN, check_private, search

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJ"
SECRETS = {  # what it is -> one of them, made up
    "a Hugging Face token": "hf_" + LETTERS[:34],
    "an OpenAI-like key": "sk-proj-" + LETTERS[:40],
    "an AWS access key": "AKIA" + "ABCDEFGHIJKLMNOP",
    "a GitHub token": "ghp_" + LETTERS[:36],
    "a GitLab token": "glpat-" + LETTERS[:20],
    "a Slack token": "xoxb-123456789012-" + LETTERS[:24],
    "a Google key": "AIza" + LETTERS[:35],
    "a Stripe key": "sk_live_" + LETTERS[:24],
    "an npm token": "npm_" + LETTERS[:36],
    "a JSON web token": f"eyJ{LETTERS[:20]}.eyJ{LETTERS[:20]}.{LETTERS[:20]}",
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a password in a URL": "https://someone:hunter22@host.example/x",
}
NAMED = [
    "wandb_api_key: 0123456789abcdef0123",
    'api_key = "0123456789abcdef"',
    "password: correct-horse",
    "WANDB_API_KEY=0123456789ab",
    "wandb_key: 0123456789abcdef0123",
    "HF_TOKEN=0123456789ab",
]
NAMED += ['"aws_secret_access_key": "wJalrXUtnFEMI/K7MDENG"', '"access_token": "0123456789abcdef"']
PATHS = {
    "a user's folder": "/home/someone/data",
    "a user's folder on Windows": "C:\\Users\\someone\\data",
    "a file URL": "file:///data/pages.pdf",
}
HARMLESS = [
    '"bot_token": "<|begin_of_tool|>"',
    '"eos_token": "<|im_end|>", "pad_token": null, "tokenizer_class": "BertTokenizer"',
    "api_key: null\npassword: false\nhub_token: none",
    "task-specific, risk-averse: sk-learn; the hf_hub; AKIA; ghp_short",
    "https://host.example/home/pages and docs/home/Users",
    "commit 0123456789abcdef0123456789abcdef01234567",
    "the password of the secret: a token",
]


def found(text: str, name: str = "card.md") -> list[str]:
    return [one.what for one in search({name: text.encode()}, []) if one.grave]


@pytest.mark.parametrize("what", [*SECRETS, *PATHS])
def test_each_kind_is_refused_by_file_and_line_and_a_secret_shown_by_its_beginning(what):
    value = (SECRETS | PATHS)[what]
    with pytest.raises(PublishError) as error:
        check_private({"a/extra.json": f'{{\n "kept": 1,\n "from": {value}\n}}'.encode()}, [])
    assert f"a/extra.json, line 3, holds {what} (" in str(error.value)
    if what in SECRETS and what != "a private key":
        assert value not in str(error.value) and value[-6:] not in str(error.value)


@pytest.mark.parametrize("text", NAMED)
def test_what_is_named_as_a_secret_is_one_whatever_it_looks_like(text):
    with pytest.raises(PublishError, match="what is named as a secret") as error:
        check_private({"extra.yaml": text.encode()}, [])
    assert text[-8:].strip('"') not in str(error.value)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_one_is_left_in_peace(text):
    assert found(text) == []


def test_a_password_in_a_url_is_shown_without_it_and_its_host_stays_readable():
    with pytest.raises(PublishError) as error:
        check_private({"recipe.yaml": b"endpoint: https://someone:hunter22@host.example/v1"}, [])
    assert "https://someone:..." in str(error.value) and "hunter22" not in str(error.value)


def test_folders_of_this_machine_are_found_as_they_are_and_as_json_writes_them(tmp_path):
    place = tmp_path / "büro"
    for text in (str(place / "x"), json.dumps({"from": str(place)}), f"'{place}'", f"{place},"):
        assert "a path of this machine" in [one.what for one in search({"a.json": text.encode()}, [place])]
    assert found(f"{tmp_path.name} and {place}ry") == []
    home = str(Path.home())
    assert "a path of this machine" in found(f"see {home}/notes") and "a path of this machine" in found(str(Path.cwd()))


def test_paths_on_windows_are_found_in_json_too():
    text = json.dumps({"base": "D:\\Users\\someone\\models"}) + json.dumps({"base": "d:/users/someone"})
    assert found(text).count("a user's folder on Windows") == 2


def test_metadata_of_weights_are_read_and_their_numbers_are_not():
    tensors = {"lora_A": torch.zeros(2, 2)}
    clean = save(tensors, metadata={"format": "pt"})
    assert check_private({"a.safetensors": clean}, []) == []
    for metadata in ({"from": "/home/someone/run"}, {"token": SECRETS["a GitHub token"]}):
        with pytest.raises(PublishError, match=r"a\.safetensors, header, holds"):
            check_private({"a.safetensors": save(tensors, metadata=metadata)}, [])
    with pytest.raises(PublishError, match=r"a\.safetensors, header, holds"):
        check_private({"a.safetensors": save({"/home/someone/x": torch.zeros(1)})}, [])
    with pytest.raises(PublishError, match="is no safetensors file"):
        check_private({"a.safetensors": b"not for others"}, [])


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "EXIF"])
def test_texts_inside_a_picture_are_read(kind):
    secret, image, texts, exif = (
        SECRETS["a Hugging Face token"],
        Image.new("RGB", (2, 2)),
        PngImagePlugin.PngInfo(),
        None,
    )
    if kind == "EXIF":
        exif = image.getexif()
        exif[0x010E] = secret  # the description
    elif kind == "iTXt":
        texts.add_itxt("Comment", secret)
    else:
        texts.add_text("Comment", secret, zip=kind == "zTXt")
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=texts, exif=exif)
    with pytest.raises(PublishError, match=r"curve\.png, (text Comment|EXIF 270), holds a Hugging Face token"):
        check_private({"curve.png": stream.getvalue()}, [])


def test_a_picture_that_is_none_is_told():
    with pytest.raises(PublishError, match=r"curve\.png is not a readable picture"):
        check_private({"curve.png": b"\x89PNG a picture"}, [])


def test_words_of_a_vocabulary_are_no_paths_but_a_secret_in_it_is_one():
    words = {"/home/user": 1, "C:\\Users\\x": 2, "me@host.example": 3}
    content = {"model": {"type": "BPE", "vocab": words, "merges": ["/home /user"]}, "added_tokens": []}
    assert check_private({"tokenizer.json": json.dumps(content).encode()}, []) == []
    assert check_private({"vocab.txt": b"/home/someone"}, []) == []
    with pytest.raises(PublishError, match="besides its words, holds a user's folder"):
        check_private({"tokenizer.json": json.dumps({**content, "from": "/home/someone/x"}).encode()}, [])
    with pytest.raises(PublishError, match="a Hugging Face token"):
        check_private({"vocab.txt": SECRETS["a Hugging Face token"].encode()}, [])
    with pytest.raises(PublishError, match=r"spiece\.model, bytes, holds a Google key"):
        check_private({"spiece.model": b"\xff\x00" + SECRETS["a Google key"].encode() + b"\x00"}, [])


def test_an_e_mail_address_is_told_and_not_refused():
    told = check_private({"README.md": b"questions:\nme@host.example"}, [])
    assert [str(one) for one in told] == ["README.md, line 2, holds an e-mail address (me@host.example)"]


def test_all_findings_are_told_at_once_up_to_a_screenful():
    files = {f"{n:02}.json": b"/home/someone" for n in range(SHOWN + 3)}
    with pytest.raises(PublishError) as error:
        check_private(files, [])
    assert str(error.value).count("holds a user's folder") == SHOWN and "(and 3 more)" in str(error.value)


def test_a_file_that_is_no_utf8_is_told():
    with pytest.raises(PublishError, match=r"a\.json is not UTF-8 text .* at byte 1"):
        check_private({"a.json": b'"\xff"'}, [])


HEX = "0123456789abcdef" * 4
PLANTED = {  # made up; what an issuer's token begins with, and the rest
    "issuers": [
        "sk-ant-api03-" + LETTERS,
        "dop_v1_" + HEX,
        "dckr_pat_" + LETTERS[:27],
        "shpat_" + HEX[:32],
        "dapi" + HEX[:32],
        "r8_" + LETTERS[:37],
        "gsk_" + LETTERS,
        "pplx-" + LETTERS,
        "xai-" + LETTERS,
        "nvapi-" + LETTERS,
        "glsa_" + LETTERS[:32] + "_0a1b2c3d",
        "hvs." + LETTERS,
        "lin_api_" + LETTERS[:40],
        "ntn_" + LETTERS,
        "lsv2_pt_" + HEX[:32] + "_0123456789",
        "pcsk_" + LETTERS,
        "dp.pt." + LETTERS[:43],
        "sntrys_" + LETTERS,
        "ATATT3" + LETTERS,
        "PMAK-" + HEX[:24] + "-" + HEX[:34],
        "pscale_tkn_" + LETTERS,
        "sbp_" + HEX[:40],
        "nfp_" + LETTERS,
        "rubygems_" + HEX[:48],
        "NRAK-" + "ABCDEFGHIJ0123456789ABCDEFG",
        "figd_" + LETTERS,
        "wandb_v1_" + LETTERS,
        "AGE-SECRET-KEY-1" + "QWERTYUIOP0123456789",
        "pypi-AgEIcHlwaS5vcmc" + LETTERS,
        "SG." + LETTERS[:22] + "." + LETTERS[:43],
        "key-" + HEX[:32],
        "whsec_" + LETTERS[:32],
        "sk_test_" + LETTERS[:24],
        "sq0csp-" + LETTERS[:43],
        "glrt-" + LETTERS[:20],
        "xapp-1-A0123-" + LETTERS,
        "GOCSPX-" + LETTERS[:28],
        "ya29." + LETTERS,
        "12345678:AA" + LETTERS[13:46],
        "AccountKey=" + LETTERS + LETTERS + "==",
        "https://discord.com/api/webhooks/123456789/" + LETTERS,
    ],
    "detect-secrets alone": [
        HEX[:32] + "-us12",
        "AC" + HEX[:32],
        "SK" + HEX[:32],
        "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs",
        "artifactory: AKCp" + LETTERS,
        "https://" + HEX[:24] + ":" + HEX + "@me.cloudantnosqldb.appdomain.cloud",
    ],
    "headers": [
        "Authorization: Bearer " + LETTERS,
        '"authorization": "Basic c29tZTpodW50ZXIyMg=="',
        "authorization=token abcdef123456",
        "-H 'Authorization: Bearer abcdefgh'",
        "AUTHORIZATION: BEARER abcdefgh12",
    ],
    "URLs": [
        "https://host.example/x?access_token=abc123def",
        "https://host.example/?a=1&api_key=hunter22",
        "https://b.s3.example/x?X-Amz-Signature=" + HEX,
        "https://a.blob.example/x?sv=1&sig=abcDEF123%3D",
        "https://host.example/#token=abcdef",
        "https://" + HEX[:40] + "@host.example/repo.git",
        "https://host.example/x?user=me&password=hunter22",
        "wss://host.example/?key=abcdef123",
    ],
    "passwords": [
        "password: abc",
        "passwd=hunter2",
        '"pwd": "s3cr3t"',
        "db_password: 'x1y2'",
        "SMTP_PASS=hunter2",
        "passcode: 4711",
        "passphrase: correct horse battery",
        "ssh-passphrase = swordfish",
        "password: |\n  hunter2",
        "password: >-\n    a1b2c3",
        '"password": [\n  "hunter2"\n ]',
        'password:  "abc"',
        "root_pass: toor1",
        "signing_key: 0123456789",
    ],
    "paths": [
        "\\\\fileserver\\private\\a.pdf",
        "read \\\\nas01.corp.example\\scans",
        "smb://nas/private",
        "nfs://host/export/x",
        "/mnt/nas/people/me",
        "/Volumes/Backup/me",
        "/scratch/someone/run",
        "/gpfs/group/someone/x",
        "sftp://host/x",
    ],
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_secrets_are_found_in_run_folders(kind):
    """Each in a prompt of a JSON file, in YAML and in a card, as far as its form allows that."""
    for text in PLANTED[kind]:
        assert found(text), text
        assert found(f"base: x\n{text}\nlr: 1"), text
        if not {*'\n"'} & {*text} and kind != "passwords":
            assert found(json.dumps({"prompts": {"query": f"Find {text} now"}})), text


def test_planted_secrets_are_shown_by_their_beginning():
    for kind in ("issuers", "detect-secrets alone", "headers", "URLs"):
        for text in PLANTED[kind]:
            for one in search({"a.md": text.encode()}, []):
                assert not one.grave or text[-6:] not in one.shown, (text, one.shown)


INNOCENT = [
    "forgot password: what to do next",
    "password reset, passphrases and secrets: a survey",
    "password: null",
    "password:\nuser: me",
    "https://host.example/x?page=2&sort=key&tokenizer=fast",
    "authorization: required",
    "https://huggingface.co/me/mine?library=sentence-transformers",
    "a \\(x\\) and C:\\\\ and \\n\\t in JSON",
    '{"sha256": "' + HEX + '", "version": "10.12.0.1", "fingerprint": "' + HEX[:40] + '"}',
    "key-value pairs",
    "bypass: 3, two_pass: 100, compass: north",
    '"num_hidden_layers": 12, "pad_token_id": 0',
    "r8_small, fw_x, SG. and ntn_",
    '"password_hash_function": 12',
    "see /mnt and /net/ and and/or/mnt/x",
    "token_type_ids=None, max_new_tokens=128",
]


@pytest.mark.parametrize("text", INNOCENT)
def test_common_words_and_hashes_of_run_folders_pass(text):
    assert found(text) == []

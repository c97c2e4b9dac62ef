# An adapter is read by plain sentence-transformers, by peft, and as a MultiVectorEncoder.
set -e
smart-train new mine --base base --data pairs.csv
smart-train train mine.yaml
smart-train export runs/mine/adapter --as merged --output exported/merged
smart-train export runs/mine/adapter --as multi-vector --output exported/tokens
python - <<'PYTHON'
import torch
from peft import PeftModel
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from smart_train import SmartEncoder

text = ["what stands beside the harbour"]
ours = SmartEncoder.from_pretrained("runs/mine/adapter", device="cpu").encode_queries(text)
for folder in ("runs/mine/adapter", "exported/merged"):
    plain = SentenceTransformer(folder, device="cpu").encode_query(text, convert_to_tensor=True)
    assert torch.allclose(torch.nn.functional.normalize(plain, dim=-1), ours.pooled, atol=1e-4), folder
tokens = MultiVectorEncoder("exported/tokens", device="cpu").encode_query(text)[0]
assert torch.allclose(torch.as_tensor(tokens), ours.tokens.values, atol=1e-4)
model = PeftModel.from_pretrained(AutoModel.from_pretrained("base"), "runs/mine/adapter").eval()
with torch.no_grad():
    states = model(**AutoTokenizer.from_pretrained("base")(text, return_tensors="pt")).last_hidden_state[0]
mean = torch.nn.functional.normalize(states.mean(0), dim=-1)
assert torch.allclose(mean, ours.pooled[0], atol=1e-4)
print("all of them agree")
PYTHON

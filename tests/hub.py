"""A stand-in for the Hugging Face Hub: one private dataset, ``dna/shards``, at ``main``. Large files come
from another address, which must not be shown the token.
"""

import hashlib
import json
from typing import Any
from urllib.parse import urlsplit

from tests.clouds import Answers

TOKEN = "hf_secretsecretsecret"
LARGE = 100  # bytes


class Hub(Answers):
    """What the Hub answers."""

    def answer(self, path: str) -> None:
        repository = "/datasets/dna/shards"
        if path.startswith("/cdn/"):
            if "Authorization" in self.headers:
                self.refuse(400, "TokenShown", "The token went to another server.")
            else:
                self.send(self.server.objects[path.removeprefix("/cdn/")][0])
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
        elif path == f"/api{repository}/paths-info/main":
            named = json.loads(self.body)["paths"]
            self._json(200, [entry for entry in self._tree("") if entry["path"] in named])
        elif path == f"/api{repository}/revision/main":
            self._json(200, {"id": "dna/shards"})
        elif path.startswith(f"/api{repository}/tree/main"):
            self._pages(path.removeprefix(f"/api{repository}/tree/main").removeprefix("/"))
        elif (
            path.startswith(f"{repository}/resolve/main/")
            and (name := path.split("/main/")[1]) in self.server.objects
        ):
            data = self.server.objects[name][0]
            if len(data) < LARGE:
                self.send(data)
            else:
                port = (self.headers["Host"] or "").partition(":")[2]
                self.say(302, Location=f"http://localhost:{port}/cdn/{name}?signature=SECRET")
        else:
            self._json(404, {"error": "Not Found"})

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, data in self.page(f"{folder}/" if folder else ""):
            digest = hashlib.sha256(data).hexdigest()
            found[name] = {"type": "file", "path": name, "size": len(data), "oid": digest[:40]}
            if len(data) >= LARGE:
                found[name]["lfs"] = {"oid": digest, "size": len(data)}
            parent = name.rpartition("/")[0]
            if parent:
                found[parent] = {"type": "directory", "path": parent, "oid": "0", "size": 0}
        return list(found.values())

    def _pages(self, folder: str) -> None:
        entries, at = self._tree(folder), int(self.query.get("cursor", "0"))
        if not entries:
            self._json(404, {"error": f"{folder} does not exist"})
            return
        following = f"http://{self.headers['Host']}{urlsplit(self.path).path}?recursive=true&cursor={at + 2}"
        more = {"Link": f'<{following}>; rel="next"'} if len(entries) > at + 2 else {}
        self._json(200, entries[at : at + 2], **more)

    def _json(self, status: int, content: Any, **headers: str) -> None:
        self.say(status, json.dumps(content).encode(), Content_Type="application/json", **headers)

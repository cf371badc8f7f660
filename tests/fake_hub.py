"""A Hugging Face Hub of one process: repositories in memory behind the addresses that huggingface_hub asks for."""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

SHA = "1" * 40
TOKEN = "hf_right"


class Hub:
    """``repositories``: {name: {path: bytes}}; ``public``: those that anybody sees; ``sizes``: what it says of files
    instead of the truth."""

    def __init__(self):
        self.repositories, self.public, self.sizes = {}, set(), {}

    def tell(self, name):
        files = [
            {"rfilename": path, "size": self.sizes.get(path, len(content))}
            for path, content in self.repositories[name].items()
        ]
        return {"id": name, "sha": SHA, "private": name not in self.public, "siblings": files}

    def commit(self, name, lines):
        files = self.repositories[name]
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "deletedFile":
                del files[value["path"]]


@contextlib.contextmanager
def fake_hub():
    """A hub that is asked at its ``address``."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, code, content=b"", **headers):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = unquote(urlparse(self.path).path)
            words = path.strip("/").split("/")
            api = words[:2] == ["api", "models"]
            name = "/".join(words[2:4] if api else words[:2])
            right = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if name not in hub.repositories or not (right or name in hub.public):
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            if api and words[4:5] == ["revision"] and words[5] not in ("main", SHA):
                return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            if api:
                return self.answer(200, hub.tell(name))
            content = hub.repositories[name]["/".join(words[4:])]
            return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=SHA)

        do_HEAD = do_GET

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            words = unquote(urlparse(self.path).path).strip("/").split("/")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid user token."})
            if words == ["api", "repos", "create"]:
                wanted = json.loads(body)
                name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                hub.repositories[name] = {".gitattributes": b""}
                if not wanted.get("private") and wanted.get("visibility") != "private":
                    hub.public.add(name)
                return self.answer(200, {"url": f"{hub.address}/{name}"})
            if words == ["api", "validate-yaml"]:
                assert json.loads(body)["content"].startswith("---\n")
                return self.answer(200, {"errors": [], "warnings": []})
            name = "/".join(words[2:4])
            if words[4] == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            hub.commit(name, [json.loads(line) for line in body.splitlines()])
            return self.answer(200, {"commitUrl": f"{hub.address}/{name}/commit/{SHA}", "commitOid": SHA})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

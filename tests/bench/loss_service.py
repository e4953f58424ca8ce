# SPDX-License-Identifier: Apache-2.0
"""The peer over the wire: POST /v1/loss as one would write it with FastAPI and PyTorch; `make bench-peers` runs it.

ssd-multibox on SSD300's priors, or those of the body. The body is received into one buffer which the tensors view.
Prints where it listens.
"""
import os
import socket
import sys

sys.dont_write_bytecode = True
import eager                    # before torch, whose threads it sets up
import priors as prior_sets
import torch
import uvicorn
from fastapi import FastAPI, Request

torch.set_num_threads(len(os.sched_getaffinity(0)))
app = FastAPI()
SSD300 = torch.from_numpy(prior_sets.named("ssd300")[0])


async def receive(request):
    body, at = bytearray(int(request.headers["content-length"])), 0
    async for piece in request.stream():
        body[at:at + len(piece)] = piece
        at += len(piece)
    return body


@app.post("/v1/loss")
async def loss(request: Request):
    t = eager.read(await receive(request))
    with torch.no_grad():
        loc_t, conf_t = eager.ssd_targets(t, t.get("priors", SSD300))
        loc, conf = eager.ssd_loss(t["loc"], t["conf"], loc_t, conf_t)
    return {"loss": {"total": (loc + conf).item(), "loc": loc.item(), "conf": conf.item()},
            "assignment": {"images": len(t["counts"]), "objects": len(t["labels"]),
                           "positives": int((conf_t > 0).sum())}}


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, loop="uvloop", http="httptools", access_log=False,
                                  log_level="error", timeout_keep_alive=300)).run(sockets=[listener])

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The real Triton client against the real daemon: `triton.py`, run by `make e2e-clients` with the Python of build/clients.

Every number is compared with what the same batch gives on /v1/loss. The last line is `N passed, N failed`.
"""
import asyncio
import contextlib
import os
import sys
import traceback

import ml_dtypes
import numpy as np
import tritonclient.http as sync
import tritonclient.http.aio as aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
sys.dont_write_bytecode = True
import lossd  # noqa: E402

MODEL = "ssd-multibox"
SCALARS = ("loss", "loc_loss", "conf_loss")
NUMPY = {"F32": np.float32, "F64": np.float64, "I32": np.int32, "I64": np.int64}


def arrays(batch):
    return {name: np.frombuffer(data, NUMPY[dtype]).reshape(shape) for name,
            (dtype, shape, data) in batch.tensors().items()}


def inputs(batch, module, binary=True):
    made = []
    for name, array in arrays(batch).items():
        dtype = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
        made.append(module.InferInput(name, list(array.shape), dtype))
        made[-1].set_data_from_numpy(array, binary_data=binary)
    return made


class Checks:
    def __init__(self, daemon):
        self.daemon, self.url = daemon, "127.0.0.1:%d" % daemon.port
        self.small, self.large = lossd.random_batch(3, n=3, p=70, c=5), lossd.random_batch(4, n=4)

    def wanted(self, batch, **options):
        """{name: array} of /v1/loss."""
        answer = self.daemon.post("/v1/loss", batch.safetensors(options), None, {"Accept": lossd.SAFETENSORS})
        assert answer.status == 200, answer
        return {name: np.array(values, NUMPY[dtype]).reshape(shape)
                for name, (dtype, shape, values) in lossd.load(answer.body)[1].items()}

    def same(self, result, wanted):
        for name, array in wanted.items():
            got = result.as_numpy(name)
            assert got.dtype == array.dtype and np.array_equal(got, array), (name, got, array)

    def client(self):
        return contextlib.closing(sync.InferenceServerClient(self.url))

    # -- what there is --------------------------------------------------------------------------------------------

    def check_health_and_metadata(self):
        with self.client() as client:
            assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
            assert client.is_model_ready(MODEL, "1") and not client.is_model_ready("nothing")
            assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
            metadata = client.get_model_metadata(MODEL)
            assert {t["name"] for t in metadata["outputs"]} >= {"loss", "grad_loc", "positives"}, metadata
            config = client.get_model_config(MODEL)
            assert config["max_batch_size"] == 0 and config["input"][0]["data_type"].startswith("TYPE_"), config
            index = client.get_model_repository_index()
            assert {m["name"] for m in index} >= {MODEL, "retinanet-focal"}, index
            client.load_model(MODEL)
            self.refused(lambda: client.unload_model(MODEL), "always loaded")

    def check_statistics(self):
        def count(client):
            (row,) = client.get_inference_statistics(MODEL)["model_stats"]
            return row["inference_stats"]["success"]["count"], row["inference_stats"]["fail"]["count"]

        with self.client() as client:
            before = count(client)
            for _ in range(3):
                client.infer(MODEL, inputs(self.small, sync))
            self.refused(lambda: client.infer(MODEL, inputs(self.small, sync)[1:]), "missing")
            after = count(client)
            assert (after[0] - before[0], after[1] - before[1]) == (3, 1), (before, after)
            assert len(client.get_inference_statistics()["model_stats"]) >= 4

    # -- inferences -----------------------------------------------------------------------------------------------

    def check_bytes_and_json(self):
        with self.client() as client:
            for batch in (self.small, self.large):
                wanted = self.wanted(batch)
                for binary in (True, False):
                    self.same(client.infer(MODEL, inputs(batch, sync, binary)), wanted)
                    outputs = [sync.InferRequestedOutput(name, binary_data=binary) for name in SCALARS]
                    result = client.infer(MODEL, inputs(batch, sync, not binary), outputs=outputs, request_id="step-17",
                                          priority=1, timeout=5000000, parameters={"label_base": 0})
                    self.same(result, {name: wanted[name] for name in SCALARS})
                    assert result.get_response()["id"] == "step-17"
                    assert result.get_output("positives") is None

    def check_short_floats(self):
        with self.client() as client:
            full = arrays(self.small)
            for datatype, dtype in (("FP16", np.float16), ("BF16", ml_dtypes.bfloat16)):
                tensors = {t.name(): t for t in inputs(self.small, sync)}
                batch = lossd.random_batch(3, n=3, p=70, c=5)
                for name in ("loc", "conf"):
                    short = full[name].astype(dtype)
                    tensors[name] = sync.InferInput(name, list(short.shape), datatype)
                    tensors[name].set_data_from_numpy(short)
                    setattr(batch, name, lossd.floats(short.astype(np.float32).ravel()))
                self.same(client.infer(MODEL, list(tensors.values())), self.wanted(batch))

    def check_gradients(self):
        names = ("grad_index", "grad_loc", "grad_conf", "target_classes", "target_objects", "target_loc", "loss")
        with self.client() as client:
            for batch in (self.small, self.large):
                wanted = self.wanted(batch, include="gradients,targets")
                for binary in (True, False):
                    outputs = [sync.InferRequestedOutput(name, binary_data=binary) for name in names]
                    result = client.infer(MODEL, inputs(batch, sync), outputs=outputs)
                    self.same(result, {name: wanted[name] for name in names})
                self.same(client.infer(MODEL, inputs(batch, sync), parameters={"include": "gradients,targets"}), wanted)
            dense = self.wanted(self.small, include="dense_gradients")
            self.same(client.infer(MODEL, inputs(self.small, sync), parameters={"include": "dense_gradients"}), dense)
            nothing = lossd.random_batch(5, n=2, p=70, c=5, objects=0)
            result = client.infer(MODEL, inputs(nothing, sync), outputs=[sync.InferRequestedOutput("grad_loc")])
            assert result.as_numpy("grad_loc").shape == (0, 4), result.get_response()

    def check_compression(self):
        with self.client() as client:
            for coding in ("gzip", "deflate"):
                for batch in (self.small, self.large):
                    wanted = self.wanted(batch, include="assignment")
                    result = client.infer(MODEL, inputs(batch, sync), request_compression_algorithm=coding,
                                          response_compression_algorithm=coding, parameters={"include": "assignment"})
                    self.same(result, wanted)

    def check_asynchronously(self):
        with self.client() as client:
            wanted = self.wanted(self.small)
            for request in [client.async_infer(MODEL, inputs(self.small, sync)) for _ in range(8)]:
                self.same(request.get_result(), wanted)

    # -- errors ---------------------------------------------------------------------------------------------------

    def refused(self, call, text):
        try:
            call()
        except InferenceServerException as failure:
            assert text in failure.message(), failure.message()
            return failure
        raise AssertionError("it was not refused: %s" % text)

    def check_errors(self):
        with self.client() as client:
            assert self.refused(lambda: client.infer("nothing", inputs(self.small, sync)), "nothing").status() == "404"
            wrong = lossd.random_batch(3, n=3, p=70, c=5)
            wrong.labels[0] = 9
            assert self.refused(lambda: client.infer(MODEL, inputs(wrong, sync)), "labels[0]").status() == "422"
            self.refused(lambda: client.infer(MODEL, inputs(self.small, sync), parameters={"includes": "x"}), "include")
            self.refused(lambda: client.infer(MODEL, inputs(self.small, sync),
                                              outputs=[sync.InferRequestedOutput("grad_locs")]), "grad_loc")
            self.refused(lambda: client.register_system_shared_memory("r0", "/shm0", 64), "--shared-memory")
            self.refused(lambda: client.get_log_settings(), "nothing here")
            nan = inputs(self.small, sync, binary=False)
            nan[3].set_data_from_numpy(np.full_like(arrays(self.small)["conf"], np.nan), binary_data=False)
            self.refused(lambda: client.infer(MODEL, nan), "NaN")
            self.same(client.infer(MODEL, inputs(self.small, sync)), self.wanted(self.small))

    def check_shared_memory(self):
        """A trainer on this machine: the batch and the gradients are written to shared memory, and read from it."""
        batch = self.large
        wanted, tensors = self.wanted(batch, include="gradients"), arrays(batch)
        key, room = "/lossd-client-%d" % os.getpid(), 1 << 22
        size = sum(array.nbytes for array in tensors.values())
        with lossd.Daemon("--shared-memory") as daemon, contextlib.closing(
                sync.InferenceServerClient("127.0.0.1:%d" % daemon.port)) as client:
            region, out = shm.create_shared_memory_region("in", key, size), \
                shm.create_shared_memory_region("out", key + "-out", 3 * room)
            try:
                client.register_system_shared_memory("in", key, size)
                client.register_system_shared_memory("out", key + "-out", 3 * room)
                assert [r["name"] for r in client.get_system_shared_memory_status()] == ["in", "out"]
                shm.set_shared_memory_region(region, list(tensors.values()))
                given, at = inputs(batch, sync), 0
                for each, array in zip(given, tensors.values()):
                    each.set_shared_memory("in", array.nbytes, offset=at)
                    at += array.nbytes
                outputs, names = [sync.InferRequestedOutput("loss")], ("grad_index", "grad_loc", "grad_conf")
                for i, name in enumerate(names):
                    outputs.append(sync.InferRequestedOutput(name))
                    outputs[-1].set_shared_memory("out", room, offset=i * room)
                result = client.infer(MODEL, given, outputs=outputs)
                self.same(result, {"loss": wanted["loss"]})
                for i, name in enumerate(names):
                    shape = result.get_output(name)["shape"]
                    got = shm.get_contents_as_numpy(out, wanted[name].dtype, shape, offset=i * room)
                    assert np.array_equal(got, wanted[name]), name
                client.unregister_system_shared_memory("in")
                client.unregister_system_shared_memory()
                assert client.get_system_shared_memory_status() == []
            finally:
                shm.destroy_shared_memory_region(region)
                shm.destroy_shared_memory_region(out)

    def check_aio(self):
        async def run():
            async with aio.InferenceServerClient(self.url) as client:
                assert await client.is_server_live() and await client.is_model_ready(MODEL)
                assert (await client.get_server_metadata())["name"] == "lossd"
                assert (await client.get_model_metadata(MODEL))["versions"] == ["1"]
                assert (await client.get_model_config(MODEL))["name"] == MODEL
                assert len(await client.get_model_repository_index()) >= 4
                assert (await client.get_inference_statistics(MODEL))["model_stats"]
                for batch in (self.small, self.large):
                    wanted = self.wanted(batch, include="gradients")
                    results = await asyncio.gather(*(client.infer(
                        MODEL, inputs(batch, aio, binary), parameters={"include": "gradients"},
                        request_compression_algorithm=coding, response_compression_algorithm=coding)
                        for binary in (True, False) for coding in (None, "gzip", "deflate")))
                    for result in results:
                        self.same(result, wanted)
                try:
                    await client.register_system_shared_memory("r0", "/shm0", 64)
                except InferenceServerException as failure:
                    assert "--shared-memory" in failure.message(), failure.message()
                try:
                    await client.infer("nothing", inputs(self.small, aio))
                except InferenceServerException as failure:
                    assert "nothing" in failure.message()
                else:
                    raise AssertionError("an unknown model was answered")

        asyncio.run(run())


def main():
    passed = failed = 0
    with lossd.Daemon() as daemon:
        checks = Checks(daemon)
        for name in sorted(dir(checks)):
            if not name.startswith("check_"):
                continue
            try:
                getattr(checks, name)()
                passed += 1
            except Exception:
                failed += 1
                print("FAIL %s\n%s" % (name, traceback.format_exc()), flush=True)
    print("%d passed, %d failed" % (passed, failed))
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())

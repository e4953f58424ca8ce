-- SPDX-License-Identifier: Apache-2.0
-- wrk posts the file $BODY of the type $BODY_TYPE and prints one JSON line.
local file = assert(io.open(os.getenv("BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = os.getenv("BODY_TYPE")
file:close()

function done(summary, latency)
    local e = summary.errors
    io.write(string.format('\n{"requests": %d, "seconds": %.6f, "failed": %d, "p99_us": %d}\n', summary.requests,
        summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(99)))
end

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request for the loss or the assignment of a batch: decoding, planning, and its units of work.
 *
 * The thread that receives the body decodes it as soon as the annotations are in (a safetensors body whose tensors come
 * in the usual order). Mostly the predictions are then scored as they arrive (stream.c). Where they have to be kept,
 * the workers run each block of priors when its conf rows have arrived and finish each image when its loc rows have.
 * Other bodies are decoded once they are complete. After the last image what needs the whole batch happens once, and
 * then, for gradients and for mining across the batch, a second round over the images. The last one reduces, encodes
 * the answer and settles the request. What costs less than INLINE_NS is computed by the receiving thread itself.
 */
#include <string.h>

#include "server.h"

#define INLINE_NS          ((size_t)200 * 1000)
#define US_PER_ANSWER_BYTE 0.01 /* of the answer */
/* Answers that may be compressed: a few bytes gain nothing, and many take too long. */
#define COMPRESSED_LEAST ((size_t)1 << 10)
#define COMPRESSED_MOST  ((size_t)8 << 20)

/* ---- decoding and planning --------------------------------------------------------------------------------------- */

/* Sparse gradients have nearly every row where nothing is mined; how many they have otherwise is not known yet. */
static int64_t known_rows(const bx_plan *plan) {
    const bool all = plan->gradients == BX_GRADIENTS_DENSE ||
                     (plan->gradients != BX_GRADIENTS_NONE && plan->criterion->mining.kind == BX_MINING_NONE);
    return all ? (int64_t)plan->n_images * plan->n_priors : 0;
}

/* Of the batch and its answer, on one core. */
static double cost_us(const request *r, const bx_plan *plan) {
    return plan->cost_us +
           US_PER_ANSWER_BYTE * (double)proto_answer_bytes(&r->decoded_request, plan, known_rows(plan), r->accept);
}

/* It would cost more to wake a worker. */
static bool is_little(const request *r, double us) {
    return us * 1000 < (double)server_from(r->server, INLINE_NS);
}

/* What a batch is not allowed to ask for, whoever asks. */
static bx_status check_cost(request *r) {
    const bx_plan *plan = &r->plan;
    const int64_t rows = known_rows(plan);
    const size_t answer = proto_answer_bytes(&r->decoded_request, plan, rows, r->accept);
    r->answer_bytes = proto_answer_bytes(&r->decoded_request, plan, 0, r->accept);
    const size_t bytes = plan->work_bytes + bx_gradient_bytes(plan, rows) + answer;
    if (rows > 0 && bytes > memory_limit(r->server->memory) - r->lease.held) {
        return request_no_memory(r, BX_BUSY, bytes, &r->error);
    }
    const double us = cost_us(r, plan), seconds = us * 1e-6;
    if (seconds > (double)r->server->options.request_timeout) {
        return bx_fail(
            &r->error, BX_TOO_LARGE, "too_expensive",
            "the work is estimated at %.0f s on one core, more than --request-timeout (%ld s); send less at once",
            seconds, r->server->options.request_timeout);
    }
    r->small = is_little(r, us);
    return BX_OK;
}

/* Whether what is planned so is worth a GPU that nobody named, and fits on it. Shared memory, which its client may make
 * shorter at any time, is read by no GPU. */
static bool suits_device(const request *r, const bx_plan *plan) {
    devices *d = r->server->devices;
    return d && !strcmp(r->decoded_request.device, "auto") && !devices_lost(d) && !plan->streamed &&
           r->n_regions == 0 && !is_little(r, cost_us(r, plan)) &&
           bx_plan_device_bytes(plan, &r->decoded_request.batch) <= devices_job_bytes(d);
}

/* Who computes it. */
static bx_status place(request *r, bool named) {
    const size_t bytes = named ? bx_plan_device_bytes(&r->plan, &r->decoded_request.batch) : 0;
    const size_t most = devices_job_bytes(r->server->devices);
    if (bytes > most) {
        return bx_fail(&r->error, BX_TOO_LARGE, "device_memory",
                       "the batch needs %zu bytes of the device's memory, a job may have %zu (--device-memory)", bytes,
                       most);
    }
    if (named && r->n_regions > 0) { /* a copy of what is cut short meanwhile would be the device's fault */
        bx_fail(&r->error, BX_DEVICE, "device_unavailable", "tensors in shared memory are computed by the cpu only");
        return bx_at(&r->error, "device");
    }
    r->on_device = named || suits_device(r, &r->plan);
    r->small = r->small && !r->on_device;
    return BX_OK;
}

static size_t stream_part(const request *r) {
    return r->plan.streamed ? stream_bytes(r) : 0;
}

/* Memory for the work and the answer, *bytes; on failure none of it is kept. */
static bx_status lease_work(request *r, size_t *bytes) {
    const size_t counters = (size_t)r->plan.n_images * (sizeof(atomic_int) + 2 * sizeof(int32_t));
    const size_t work = r->plan.work_bytes + stream_part(r) + counters;
    const size_t stages = r->plan.streamed ? stream_stage_bytes(&r->plan) : 0;
    *bytes = buffer_size(work) + (stages > 0 ? buffer_size(stages) : 0) + r->answer_bytes;
    bx_status status = lease_take(&r->lease, work, &r->work);
    if (status == BX_OK && stages > 0) {
        status = lease_take(&r->lease, stages, &r->stages);
    }
    if (status == BX_OK && !lease_promise(&r->lease, r->answer_bytes)) {
        status = BX_BUSY;
    }
    if (status != BX_OK) {
        lease_give(&r->lease, &r->work);
        lease_give(&r->lease, &r->stages);
    }
    return status;
}

/* Lay the job out in the work's memory, with none of its units done. */
static void begin_job(request *r) {
    bx_job_init(&r->job, &r->plan, &r->decoded_request.batch, r->work.data);
    r->job.cancel = &r->cancelled;
    char *behind = (char *)r->work.data + r->plan.work_bytes;
    r->blocks_left = (atomic_int *)(void *)(behind + stream_part(r));
    r->images_ready = (int32_t *)(void *)(r->blocks_left + r->plan.n_images);
    for (int32_t i = 0; i < r->plan.n_images; i++) {
        atomic_init(&r->blocks_left[i], r->plan.n_blocks + 1);
    }
    atomic_init(&r->images_left, r->plan.n_images);
    if (r->plan.streamed) {
        stream_begin(r, behind);
    }
}

/* The common case fits what admission reserved. */
static bx_status take_work(request *r) {
    size_t bytes;
    bx_status status = lease_work(r, &bytes);
    if (status == BX_BUSY && r->plan.streamed) {
        r->stream.alone = true;
        status = lease_work(r, &bytes);
    }
    if (status != BX_OK) {
        return request_no_memory(r, status, bytes, &r->error);
    }
    begin_job(r);
    return BX_OK;
}

/* Shared memory whose object became too short while it was read has told nothing. */
static bx_status check_regions(const request *r, bx_error *error) {
    bx_status status = BX_OK;
    for (size_t i = 0; status == BX_OK && i < r->n_regions; i++) {
        status = region_check(r->regions[i], error);
    }
    return status;
}

static bx_status decode(request *r, size_t bytes, bool by_worker, bool makes) {
    reservation own = {.request = r, .by_worker = by_worker};
    const proto_limits limits = request_limits(&own);
    request_drop_regions(r); /* of an earlier attempt */
    const proto_catalog *catalog = registry_catalog(r->server->registry, makes);
    bx_status status = r->encoding == PROTO_INFER
                           ? proto_infer_decode(&r->decoded_request, r->name, r->json_bytes, r->body.data, bytes,
                                                r->query, r->n_query, catalog, &limits, &r->error)
                           : proto_request_decode(&r->decoded_request, r->route->task, r->encoding, r->body.data, bytes,
                                                  r->query, r->n_query, catalog, &limits, &r->error);
    lease_return(&r->lease, own.bytes);
    r->decoded = status == BX_OK;
    bx_error shorter = {0};
    if (!r->decoded && check_regions(r, &shorter) != BX_OK) { /* what was found wrong is not what the client wrote */
        r->error = shorter;
        return shorter.status;
    }
    if (r->decoded && r->decoded_request.run[0] && r->right < RIGHT_WRITE) {
        metrics_denied(r->server->metrics, DENIED_ROLE);
        status = bx_fail(&r->error, BX_INVALID, "forbidden", "recording takes a token that may write");
        bx_at(&r->error, "run");
    } else if (r->decoded && !lease_promise(&r->lease, r->decoded_request.memory_bytes)) {
        status = request_no_memory(r, BX_BUSY, r->decoded_request.memory_bytes, &r->error);
    }
    return status;
}

/* A decoded request -> plan -> job. */
static bx_status plan_work(request *r) {
    bool named;
    bx_status status = device_choose(r, &named, &r->error);
    if (status == BX_OK) {
        const proto_request *q = &r->decoded_request;
        status = bx_plan_init(&r->plan, q->criterion, q->priors, &q->batch, q->gradients, &r->error);
    }
    if (status == BX_OK) {
        status = check_cost(r);
    }
    if (status == BX_OK) {
        status = place(r, named);
    }
    if (status == BX_OK) {
        status = take_work(r);
    }
    r->planned = status == BX_OK;
    if (r->planned) {
        atomic_store_explicit(&r->n_images, r->plan.n_images, memory_order_relaxed);
    }
    return status;
}

bx_status batch_prepare(request *r, size_t bytes, bool by_worker, bool makes) {
    bx_status status = decode(r, bytes, by_worker, makes);
    return status == BX_OK ? plan_work(r) : status;
}

/* What takes long is left to a worker. */
static bx_status unless_later(request *r, bx_status status) {
    r->later = status != BX_OK && !strcmp(r->error.code, REGISTRY_LATER);
    if (r->later) {
        r->error = (bx_error){0};
    }
    return r->later ? BX_OK : status;
}

bx_status batch_prepare_here(request *r, size_t bytes) {
    return unless_later(r, batch_prepare(r, bytes, false, false));
}

/* Whether all of the body is to be kept for a GPU. Where there is no memory for that, the cpu needs less. */
static bool is_kept_for_device(request *r, bool named) {
    const proto_request *q = &r->decoded_request;
    bx_plan plan;
    return named || (r->server->devices &&
                     bx_plan_init(&plan, q->criterion, q->priors, &q->batch, q->gradients, NULL) == BX_OK &&
                     suits_device(r, &plan) && request_reserve_whole(r, NULL) == BX_OK);
}

bx_status batch_prepare_stream(request *r) {
    bool named;
    bx_status status = decode(r, r->expected, false, false);
    if (status != BX_OK) {
        return unless_later(r, status);
    }
    status = device_choose(r, &named, &r->error);
    if (status != BX_OK) {
        return status;
    }
    if (!stream_fits(r) || is_kept_for_device(r, named)) { /* it will be decoded again where all of it is kept */
        lease_return(&r->lease, r->decoded_request.memory_bytes);
        proto_request_free(&r->decoded_request);
        r->decoded = false;
        return BX_OK;
    }
    r->decoded_request.batch.streamed = true;
    return plan_work(r);
}

/* ---- progress: what of a planned request may run ----------------------------------------------------------------- */

/* Rows of a prediction tensor that are in, from 0 to N*P. */
static int64_t rows_in(const request *r, bx_tensor tensor, size_t width) {
    const size_t row = width * bx_dtype_bytes(tensor.dtype);
    const int64_t all = (int64_t)r->plan.n_images * r->plan.n_priors;
    const char *data = tensor.data, *body = r->body.data;
    if (!data || data < body || data >= body + r->body.bytes) {
        return all; /* decoded into memory of its own */
    }
    size_t at = (size_t)(data - body);
    int64_t rows = r->received > at ? (int64_t)((r->received - at) / row) : 0;
    return rows < all ? rows : all;
}

/* Hand the workers what may run of so many rows. */
static void hand_out(request *r, int64_t conf_rows, int64_t loc_rows) {
    const bx_plan *plan = &r->plan;
    const int64_t blocks = conf_rows / plan->n_priors * plan->n_blocks + conf_rows % plan->n_priors / BX_BLOCK;
    const int64_t images = loc_rows / plan->n_priors;
    for (; r->images_arrived < images; r->images_arrived++) {
        if (atomic_fetch_sub(&r->blocks_left[r->images_arrived], 1) == 1) { /* its blocks were done first */
            pool_push_image(r->pool, r, r->images_arrived);
        }
    }
    pool_advance(r->pool, r, blocks);
}

void batch_progress(request *r) {
    const bx_batch *batch = &r->decoded_request.batch;
    const int64_t conf_rows = rows_in(r, batch->conf, (size_t)r->plan.n_columns);
    const int64_t loc_rows = rows_in(r, batch->loc, 4);
    if (!r->on_device || !device_progress(r, conf_rows, loc_rows)) {
        hand_out(r, conf_rows, loc_rows);
    }
}

bool batch_run_inline(request *r) {
    bx_context *context = pool_borrow(r->pool);
    if (!context) {
        return false;
    }
    request_mark_begun(r);
    for (int32_t i = 0; i < r->plan.n_images; i++) {
        atomic_fetch_sub(&r->blocks_left[i], 1); /* its loc rows */
        for (int32_t b = 0; b < r->plan.n_blocks; b++) {
            batch_run_unit(r, context, (int64_t)i * r->plan.n_blocks + b);
        }
    }
    pool_return(r->pool, context);
    return true;
}

/* ---- units ------------------------------------------------------------------------------------------------------- */

/* In the coding that the client asked for, where the answer is long enough to be worth it and becomes smaller by an
 * eighth. */
static void compress(request *r, answer *done) {
    const size_t bytes = done->body.bytes, room = bytes / 8 * 7;
    proto_buffer coded = {0};
    if (r->reply == PROTO_IDENTITY || bytes < COMPRESSED_LEAST || bytes > COMPRESSED_MOST ||
        !lease_borrow(&r->lease, room + PROTO_DEFLATER_BYTES)) {
        return;
    }
    if (proto_deflate(&coded, r->reply, done->body.data, bytes, room)) {
        proto_buffer_free(&done->body);
        done->body = coded;
        done->coding = r->reply;
    } else {
        proto_buffer_free(&coded);
    }
    lease_return(&r->lease, done->coding ? PROTO_DEFLATER_BYTES : room + PROTO_DEFLATER_BYTES);
}

static bx_status encode(request *r, const bx_result *result, answer *done, bx_error *error) {
    const size_t most = memory_limit(r->server->memory);
    if (r->accept != PROTO_INFER) {
        done->type = r->accept == PROTO_JSON ? PROTO_TYPE_JSON : PROTO_TYPE_SAFETENSORS;
        return proto_answer_encode(&done->body, r->accept, &r->decoded_request, result, &done->timing, r->id, most,
                                   error);
    }
    proto_infer_layout layout;
    bx_status status =
        proto_infer_encode(&done->body, &layout, &r->decoded_request, result, &done->timing, r->id, most, error);
    if (status == BX_OK && atomic_load(&r->cancelled)) {
        return BX_OK; /* nobody waits: it is cut short, and must not be written */
    }
    for (int i = 0; status == BX_OK && i < layout.n_shared; i++) {
        const proto_shared *place = &layout.shared[i].place;
        status = region_write(r->regions[place->index], place->offset, done->body.data + layout.shared[i].at,
                              place->bytes, error);
    }
    if (status == BX_OK) {
        proto_buffer_trim(&done->body, layout.sent_bytes);
        done->json_bytes = layout.json_bytes;
        done->type = done->json_bytes > 0 ? PROTO_TYPE_BYTES : PROTO_TYPE_JSON;
        compress(r, done);
    }
    return status;
}

void batch_finish(request *r) {
    if (atomic_load(&r->cancelled)) {
        return; /* units that were cut short left nothing to reduce, and nobody waits */
    }
    bx_result result;
    bx_error error = {0};
    answer done = {.status = 200};
    done.timing = request_timing(r);
    bx_status status = check_regions(r, &error);
    if (status == BX_OK) {
        status = bx_finish(&result, &r->job, &error);
    }
    if (status == BX_OK) {
        status = encode(r, &result, &done, &error);
    }
    if (status == BX_OK) {
        metrics_computed(r->server->metrics, r->device);
    }
    if (status != BX_OK) {
        answer_free(&done);
        done = request_error(r, &error);
    } else if (r->decoded_request.run[0]) {
        copy_text(r->record.run, sizeof r->record.run, r->decoded_request.run);
        proto_step_make(&r->record.step, &r->decoded_request, &result, &done.timing);
        r->done = done;
        runs_put(r->server->runs, r);
        return;
    }
    request_settle(r, done);
}

/* What the gradients add to the answer, at most. */
static size_t gradient_answer_bytes(const request *r) {
    const int64_t rows = bx_job_gradient_rows(&r->job);
    return proto_answer_bytes(&r->decoded_request, &r->plan, rows, r->accept) - r->answer_bytes;
}

bx_status batch_take_gradients(request *r, bx_error *error) {
    if (r->plan.gradients == BX_GRADIENTS_NONE) {
        return BX_OK;
    }
    const size_t bytes = bx_gradient_bytes(&r->plan, bx_job_gradient_rows(&r->job));
    const size_t answer = gradient_answer_bytes(r);
    bx_status status = lease_take(&r->lease, bytes > 0 ? bytes : 1, &r->gradients);
    if (status == BX_OK && !lease_promise(&r->lease, answer)) {
        status = BX_BUSY;
        lease_give(&r->lease, &r->gradients);
    }
    if (status != BX_OK) {
        return request_no_memory(r, status, bytes + answer, error);
    }
    bx_job_place_gradients(&r->job, r->gradients.data);
    return BX_OK;
}

/* Its body is still there; how much of it, only who receives it knows. */
void batch_redo(request *r) {
    if (r->gradients.data) {
        lease_return(&r->lease, gradient_answer_bytes(r));
        lease_give(&r->lease, &r->gradients);
    }
    begin_job(r);
    if (device_leave(r)) {
        const int64_t all = (int64_t)r->plan.n_images * r->plan.n_priors;
        hand_out(r, all, all);
    }
}

static void run_second_round(request *r, bx_context *context) {
    const int32_t n = r->plan.n_images;
    atomic_init(&r->rows_left, n);
    if (!r->small) {
        pool_push_rows(r->pool, r);
        return;
    }
    for (int32_t i = 0; i < n; i++) {
        batch_run_rows(r, context, i);
    }
}

/* The last image of the first round is done: what needs all of them, and then the second round or the answer. */
static void finish_round(request *r, bx_context *context) {
    bx_error error = {0};
    if (atomic_load(&r->cancelled)) {
        return;
    }
    bx_status status = bx_run_batch(context, &r->job, &error);
    if (status == BX_OK && r->plan.second_round && !atomic_load(&r->cancelled)) {
        status = batch_take_gradients(r, &error);
    }
    if (atomic_load(&r->cancelled)) {
        return; /* nothing that was computed means anything */
    }
    if (status != BX_OK) {
        request_settle(r, request_error(r, &error));
    } else if (!r->plan.second_round) {
        batch_finish(r);
    } else {
        run_second_round(r, context);
    }
}

void batch_run_rows(request *r, bx_context *context, int32_t image) {
    bx_run_rows(context, &r->job, image);
    if (atomic_fetch_sub(&r->rows_left, 1) == 1) {
        batch_finish(r);
    }
}

void batch_run_image(request *r, bx_context *context, int32_t image) {
    request_mark_begun(r);
    bx_run_image(context, &r->job, image);
    if (atomic_fetch_sub(&r->images_left, 1) == 1) {
        finish_round(r, context);
    }
}

void batch_run_unit(request *r, bx_context *context, int64_t unit) {
    if (r->plan.streamed) {
        stream_assign(r, context, (int32_t)unit);
        return;
    }
    int32_t image = (int32_t)(unit / r->plan.n_blocks), block = (int32_t)(unit % r->plan.n_blocks);
    request_mark_begun(r);
    bx_run_block(context, &r->job, image, block);
    if (atomic_fetch_sub(&r->blocks_left[image], 1) == 1) {
        batch_run_image(r, context, image);
    }
}

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs and their steps: what is kept, how it is told, and that few rows of a long run show all of its extremes.
 */
#include "../support/recording.h"

/* ---- what is kept ------------------------------------------------------------------------------------------------ */

START_TEST(nothing_is_made_for_nothing) {
    char deeper[80];
    bool found = true, more = true;
    bx_error error = {0};
    struct stat state;
    proto_run run;
    proto_step latest;
    char tag[HISTORY_TAG];
    int64_t next;
    told t;
    snprintf(deeper, sizeof deeper, "%s/data", directory);
    ck_assert_int_eq(open_in(deeper, (history_options){.keep_steps = 5, .keep_days = 5}, &error), BX_OK);
    ck_assert_str_eq(list("", 10), "");
    must_refuse(history_describe(h, "a", &run, &latest, tag, &error), &error, "unknown_run", "\"a\"");
    error = (bx_error){0};
    must_refuse(read_steps(&t, "a", -1, 10, 0, &next, &error), &error, "unknown_run", "\"a\"");
    ck_assert_int_eq(history_delete(h, "a", &found, NULL), BX_OK);
    ck_assert(!found);
    ck_assert_int_eq(history_tidy(h, &more, NULL), BX_OK);
    ck_assert(!more);
    ck_assert_int_eq(history_probe(h, NULL), BX_OK);
    ck_assert_int_eq(stat(deeper, &state), -1);
    ck_assert(!history_exists(h));
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    must_put("a", 1, 1);
    ck_assert(history_exists(h));
    ck_assert_int_eq(stat(deeper, &state), 0);
    ck_assert_int_eq(state.st_mode & 0777, 0700);
    close_history();
}
END_TEST

START_TEST(runs_and_steps) {
    bx_error error = {0};
    proto_run run;
    proto_step latest;
    char tag[HISTORY_TAG];
    must_open((history_options){0});
    must_put("b", 7, 0.5);
    ck_assert_str_eq(list("", 10), "b:1[7..7]=0.5;");
    must_put("b", 9, 2);
    must_put("b", 3, 4); /* late */
    ck_assert_str_eq(list("", 10), "b:3[3..9]=2;");
    must_put("b", 9, 8); /* replaced: the last one, */
    ck_assert_str_eq(list("", 10), "b:3[3..9]=8;");
    must_put("b", 3, 16); /* and another one */
    ck_assert_str_eq(list("", 10), "b:3[3..9]=8;");
    const record together[] = {make_record("a", 0, 1), make_record("B", 0, 2), make_record("a", 0, 3),
                               make_record("a", (int64_t)1 << 53, 4), make_record("a", 1, 5)};
    must_write_all(together, 5);
    ck_assert_str_eq(list("", 10), "B:1[0..0]=2;a:3[0..9007199254740992]=4;b:3[3..9]=8;");
    ck_assert_str_eq(list("", 2), "B:1[0..0]=2;a:3[0..9007199254740992]=4;");
    ck_assert_str_eq(list("a", 10), "b:3[3..9]=8;");
    ck_assert_str_eq(list("aa", 10), "b:3[3..9]=8;");
    ck_assert_str_eq(list("b", 10), "");
    told t;
    read_all(&t, "a");
    const proto_step want[] = {together[2].step, together[4].step, together[3].step};
    must_be_rows(&t, want, 3);
    told_free(&t);
    ck_assert_int_eq(history_describe(h, "a", &run, &latest, tag, &error), BX_OK);
    ck_assert(same_step(&latest, &together[3].step));
    ck_assert_str_eq(run.name, "a");
    ck_assert_int_eq(run.first_us, together[0].step.time_us); /* in the order in which they came */
    ck_assert_int_eq(run.last_us, together[4].step.time_us);
    error = (bx_error){0};
    must_refuse(history_describe(h, "c", &run, &latest, tag, &error), &error, "unknown_run", "\"c\"");
    close_history();
    must_open((history_options){0});
    ck_assert_str_eq(list("", 10), "B:1[0..0]=2;a:3[0..9007199254740992]=4;b:3[3..9]=8;");
    close_history();
    must_be_consistent();
    must_answer("PRAGMA journal_mode", "wal");
}
END_TEST

/* What is not known stays so, and every other value comes back to the bit. */
START_TEST(values) {
    proto_run run;
    proto_step latest;
    char tag[HISTORY_TAG];
    record r[3] = {make_record("r", 0, 0.1), make_record("r", 1, 5e-324), make_record("r", 2, -1.7976931348623157e308)};
    r[1].step.values[PROTO_STEP_OBJECTS] = NAN; /* as of a step with targets */
    r[1].step.values[PROTO_STEP_FORCED] = NAN;
    r[1].step.values[PROTO_STEP_UNMATCHED_OBJECTS] = NAN;
    r[1].step.values[PROTO_STEP_BEST_IOU_MEAN] = NAN;
    r[1].step.has_objects = false;
    r[2].step.values[PROTO_STEP_NEGATIVES] = 9007199254740992.0;
    r[2].step.values[PROTO_STEP_LOC] = INFINITY;
    must_open((history_options){0});
    for (int i = 0; i < 3; i++) {
        must_write_all(&r[i], 1);
        ck_assert_int_eq(history_describe(h, "r", &run, &latest, tag, NULL), BX_OK);
        ck_assert(same_step(&latest, &r[i].step));
        ck_assert_double_eq(run.last_loss, r[i].step.values[PROTO_STEP_TOTAL]);
    }
    r[2].step.values[PROTO_STEP_TOTAL] = NAN;
    must_write_all(&r[2], 1);
    ck_assert_int_eq(history_describe(h, "r", &run, &latest, tag, NULL), BX_OK);
    ck_assert(isnan(latest.values[PROTO_STEP_TOTAL]));
    ck_assert(isnan(run.last_loss));
    const proto_step want[] = {r[0].step, r[1].step, r[2].step};
    told t;
    read_all(&t, "r");
    must_be_rows(&t, want, 3);
    told_free(&t);
    close_history();
}
END_TEST

static void read_tags(const char *run, char of_run[HISTORY_TAG], char of_steps[HISTORY_TAG]) {
    proto_run r;
    proto_step latest;
    int64_t next;
    told t;
    ck_assert_int_eq(history_describe(h, run, &r, &latest, of_run, NULL), BX_OK);
    ck_assert_int_eq(read_steps(&t, run, -1, 1, 0, &next, NULL), BX_OK);
    strcpy(of_steps, t.tag);
    told_free(&t);
}

/* Of everything that changes what is told; and of nothing else. */
START_TEST(entity_tags) {
    enum { CHANGES = 7 };
    char tags[CHANGES][2][HISTORY_TAG], again[2][HISTORY_TAG];
    must_open((history_options){0});
    must_put("other", 1, 1);
    for (int i = 0; i < CHANGES; i++) {
        switch (i) {
        case 4:
            must_delete("r");
            must_put("r", 11, 1);
            break;
        case 5:
            must_delete("r");
            tidy_all();
            must_put("r", 12, 1);
            break;
        case 6:
            close_history();
            must_open((history_options){.keep_steps = 1});
            must_put("r", 13, 1);
            break;
        default:
            must_put("r", i == 3 ? 0 : i, i); /* 3: replaced */
        }
        read_tags("r", tags[i][0], tags[i][1]);
        for (int j = 0; j < i; j++) {
            ck_assert_str_ne(tags[i][0], tags[j][0]);
            ck_assert_str_ne(tags[i][1], tags[j][1]);
        }
        must_put("other", i, 1);
        tidy_all();
        read_tags("r", again[0], again[1]);
        ck_assert_str_eq(again[0], tags[i][0]);
        ck_assert_str_eq(again[1], tags[i][1]);
    }
    close_history();
}
END_TEST

/* So many steps of a run, from `first`. */
static void put_many(const char *run, int64_t first, int64_t n) {
    static record records[512];
    while (n > 0) {
        const int64_t some = n < 512 ? n : 512;
        for (int64_t i = 0; i < some; i++) {
            records[i] = make_record(run, first + i, (double)(first + i));
        }
        must_write_all(records, (size_t)some);
        first += some;
        n -= some;
    }
}

START_TEST(deleted) {
    bool found = true;
    must_open((history_options){0});
    put_many("r", 0, 6500);
    must_put("s", 1, 1);
    ck_assert_int_eq(history_delete(h, "t", &found, NULL), BX_OK);
    ck_assert(!found);
    must_delete("r");
    ck_assert_str_eq(list("", 10), "s:1[1..1]=1;"); /* at once */
    told t;
    read_all(&t, "r");
    ck_assert_uint_eq(t.n, 0);
    must_put("r", 5, 25); /* another one */
    ck_assert_int_eq(history_delete(h, "r", &found, NULL), BX_OK);
    ck_assert(found);
    must_put("r", 6, 36);
    ck_assert_int_ge(tidy_all(), 4); /* slice by slice */
    ck_assert_str_eq(list("", 10), "r:1[6..6]=36;s:1[1..1]=1;");
    close_history();
    must_answer("SELECT count(*) FROM step", "2");
    must_answer("SELECT count(*) FROM chunk", "0");
    must_answer("SELECT count(*) FROM run", "2");
    must_be_consistent();
}
END_TEST

START_TEST(a_slice_exactly) {
    must_open((history_options){0});
    put_many("r", 0, 4000);
    must_delete("r");
    tidy_all();
    close_history();
    must_answer("SELECT (SELECT count(*) FROM run) + (SELECT count(*) FROM step) + (SELECT count(*) FROM chunk)", "0");
}
END_TEST

START_TEST(paging) {
    must_open((history_options){0});
    for (int i = 0; i < 5; i++) {
        put_many("r", i * 1000, 500);
    }
    put_many("s", 0, 10);
    told all, page;
    read_all(&all, "r");
    ck_assert_uint_eq(all.n, 2500);
    static const int64_t limits[] = {1000, 500, 499, 7};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        int64_t after = -1, next;
        size_t n = 0;
        do {
            HOLDS(read_steps(&page, "r", after, limits[i], 0, &next, NULL) == BX_OK, "%lld", (long long)after);
            HOLDS(page.n == (size_t)limits[i] || next < 0, "%zu rows", page.n);
            for (size_t k = 0; k < page.n; k++, n++) {
                HOLDS(n < all.n && same_step(&page.rows[k], &all.rows[n]), "row %zu", n);
            }
            HOLDS(next < 0 || next == page.rows[page.n - 1].step, "next is %lld", (long long)next);
            after = next;
            told_free(&page);
        } while (next >= 0);
        ck_assert_uint_eq(n, all.n);
    }
    int64_t next;
    ck_assert_int_eq(read_steps(&page, "r", 4499, 10, 0, &next, NULL), BX_OK);
    ck_assert_uint_eq(page.n, 0);
    ck_assert_int_eq(next, -1);
    told_free(&all);
    close_history();
}
END_TEST

static bool refuse_all(void *context, const proto_run *run, const char *tag) {
    (void)context;
    return run->steps < 0 || !tag;
}

/* A reader who has the rows already does not read them; one who has left is not read for. */
START_TEST(rows_that_nobody_wants) {
    bx_error error = {0};
    atomic_bool cancelled;
    int64_t next;
    told t = {0};
    must_open((history_options){0});
    put_many("r", 0, 20000);
    history_steps wanted = {
        .run = "r", .after = -1, .limit = 1000000, .begin = refuse_all, .each = told_each, .context = &t};
    ck_assert_int_eq(history_read(h, &wanted, &next, NULL), BX_OK);
    ck_assert_uint_eq(t.n, 0);
    atomic_init(&cancelled, true);
    wanted.cancelled = &cancelled;
    wanted.begin = told_begin;
    must_refuse(history_read(h, &wanted, &next, &error), &error, "timeout", "");
    ck_assert_uint_lt(t.n, 20000);
    told_free(&t);
    ck_assert_int_eq(history_get_state(h), HISTORY_FINE);
    atomic_store(&cancelled, false);
    ck_assert_int_eq(history_read(h, &wanted, &next, NULL), BX_OK);
    ck_assert_uint_eq(t.n, 20000);
    told_free(&t);
    close_history();
}
END_TEST

/* ---- what is not kept -------------------------------------------------------------------------------------------- */

START_TEST(few_steps_are_kept) {
    must_open((history_options){.keep_steps = 3});
    for (int i = 0; i < 10; i++) {
        must_put("r", i, i);
        told t;
        read_all(&t, "r");
        ck_assert_uint_eq(t.n, i < 3 ? i + 1 : 3);
        ck_assert_int_eq(t.rows[t.n - 1].step, i);
        told_free(&t);
    }
    must_put("r", 2, 2); /* the lowest one: it goes at once */
    ck_assert_str_eq(list("", 10), "r:3[7..9]=9;");
    must_put("r", 8, 2);
    ck_assert_str_eq(list("", 10), "r:3[7..9]=9;");
    must_put("s", 8, 2);
    ck_assert_str_eq(list("", 10), "r:3[7..9]=9;s:1[8..8]=2;");
    close_history();
    must_be_consistent();
}
END_TEST

START_TEST(many_steps_are_kept) {
    must_open((history_options){.keep_steps = 3200});
    put_many("r", 0, 3399);
    ck_assert_str_eq(list("", 10), "r:3399[0..3398]=3398;");
    must_put("r", 3399, 1); /* a sixteenth too many */
    ck_assert_str_eq(list("", 10), "r:3200[200..3399]=1;");
    put_many("r", 3400, 20000);
    close_history();
    must_be_consistent();
    char kept[256];
    query("SELECT steps FROM run", kept);
    ck_assert_int_ge(atoi(kept), 3200);
    ck_assert_int_lt(atoi(kept), 3400);
}
END_TEST

START_TEST(fewer_are_kept_after_a_restart) {
    must_open((history_options){0});
    put_many("r", 0, 9000);
    put_many("s", 0, 100);
    ck_assert_int_eq(tidy_all(), 0);
    close_history();
    must_open((history_options){.keep_steps = 100});
    ck_assert_int_ge(tidy_all(), 4);
    ck_assert_str_eq(list("", 10), "r:100[8900..8999]=8999;s:100[0..99]=99;");
    must_put("r", 9000, 1);
    close_history();
    must_be_consistent();
}
END_TEST

START_TEST(old_runs_go) {
    const int64_t day = 86400LL * 1000000, now = (int64_t)time(NULL) * 1000000;
    record r[4] = {make_record("old", 1, 1), make_record("new", 1, 1), make_record("going on", 1, 1),
                   make_record("going on", 2, 1)};
    r[0].step.time_us = now - 3 * day - 60000000;
    r[1].step.time_us = now - 3 * day + 60000000;
    r[2].step.time_us = now - 9 * day;
    r[3].step.time_us = now - day;
    must_open((history_options){0});
    must_write_all(r, 4);
    tidy_all();
    ck_assert_str_eq(list("", 10), "going on:2[1..2]=1;new:1[1..1]=1;old:1[1..1]=1;");
    close_history();
    must_open((history_options){.keep_days = 3});
    tidy_all();
    ck_assert_str_eq(list("", 10), "going on:2[1..2]=1;new:1[1..1]=1;");
    close_history();
    must_answer("SELECT count(*) FROM step", "3");
    must_be_consistent();
}
END_TEST

/* ---- few rows of many -------------------------------------------------------------------------------------------- */

static const int charted[] = {
    PROTO_STEP_TOTAL,        PROTO_STEP_LOC, PROTO_STEP_CONF, PROTO_STEP_POSITIVES, PROTO_STEP_UNMATCHED_OBJECTS,
    PROTO_STEP_BEST_IOU_MEAN};

/* The least and the greatest of a value, as rows. */
static void find_extremes(const proto_step *rows, size_t n, int value, double *least, double *greatest) {
    *least = INFINITY;
    *greatest = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        const double v = rows[i].values[value];
        *least = v < *least ? v : *least;
        *greatest = v > *greatest ? v : *greatest;
    }
}

static void check_thinned(const model *m, const char *run, int64_t after, int64_t points) {
    const size_t from = model_find(m, after + 1), n = m->n - from;
    const proto_step *rows = m->rows + from;
    const int64_t values = (points - 2) / 2 < 6 ? (points - 2) / 2 : 6; /* of so many there are the extremes */
    bx_error error = {0};
    int64_t next;
    told t;
    bx_status status = read_steps(&t, run, after, 0, points, &next, &error);
    HOLDS(status == BX_OK, "%s", error.text);
    HOLDS(next < 0, "next is %lld", (long long)next);
    if (m->n <= (size_t)points) {
        must_be_rows(&t, rows, n);
        told_free(&t);
        return;
    }
    HOLDS(t.n <= (size_t)points, "%zu rows for %lld points", t.n, (long long)points);
    HOLDS((t.n > 0) == (n > 0), "%zu rows of %zu", t.n, n);
    for (size_t i = 0; i < t.n; i++) {
        const size_t at = model_find(m, t.rows[i].step);
        HOLDS(i == 0 || t.rows[i].step > t.rows[i - 1].step, "step %lld is out of order", (long long)t.rows[i].step);
        HOLDS(at < m->n && same_step(&m->rows[at], &t.rows[i]), "step %lld was never written so",
              (long long)t.rows[i].step);
    }
    if (n > 0) {
        HOLDS(t.rows[0].step == rows[0].step, "the first is %lld, not %lld", (long long)t.rows[0].step,
              (long long)rows[0].step);
        HOLDS(t.rows[t.n - 1].step == rows[n - 1].step, "the last is %lld, not %lld", (long long)t.rows[t.n - 1].step,
              (long long)rows[n - 1].step);
    }
    for (int i = 0; i < values; i++) {
        double least, greatest, told_least, told_greatest;
        find_extremes(rows, n, charted[i], &least, &greatest);
        find_extremes(t.rows, t.n, charted[i], &told_least, &told_greatest);
        HOLDS(least == told_least && greatest == told_greatest, "value %d: %g..%g, not %g..%g (%lld points of %zu)", i,
              told_least, told_greatest, least, greatest, (long long)points, n);
    }
    told_free(&t);
}

static const int64_t all_points[] = {4, 5, 6, 13, 14, 15, 25, 26, 27, 50, 128, 500, 1999, 2000};
#define N_POINTS (sizeof all_points / sizeof *all_points)

/* A curve that falls with noise, and now and then a spike in one of the values; some know no objects. */
static record random_record(const char *run, int64_t step) {
    record r = make_record(run, step, 0);
    double *v = r.step.values;
    for (int i = 0; i < 6; i++) {
        v[charted[i]] = (double)uniform(1, 2) * 100 / (100 + (double)step);
    }
    v[PROTO_STEP_POSITIVES] = below(1000);
    v[PROTO_STEP_UNMATCHED_OBJECTS] = below(5);
    if (below(40) == 0) {
        const int i = charted[below(6)];
        v[i] += (below(2) ? 1 : -1) * (double)(1 + below(1000000));
    }
    if (below(10) == 0) {
        v[PROTO_STEP_OBJECTS] = v[PROTO_STEP_FORCED] = v[PROTO_STEP_UNMATCHED_OBJECTS] = v[PROTO_STEP_BEST_IOU_MEAN] =
            NAN;
        r.step.has_objects = false;
    }
    return r;
}

static record to_write[512];

static void write_and_model(model *m, size_t n) {
    must_write_all(to_write, n);
    for (size_t i = 0; i < n; i++) {
        model_put(m, &to_write[i].step);
    }
}

static int64_t last_of(const model *m) {
    return m->n > 0 ? m->rows[m->n - 1].step : 0;
}

/* One of the rows that are there, rather an extreme one. */
static int64_t pick(const model *m) {
    const int value = charted[below(6)];
    double least, greatest;
    if (below(3) == 0) {
        return m->rows[below((int32_t)m->n)].step;
    }
    find_extremes(m->rows, m->n, value, &least, &greatest);
    for (size_t i = 0; i < m->n; i++) {
        const double v = m->rows[i].values[value];
        if (v == least || v == greatest) {
            return m->rows[i].step;
        }
    }
    return last_of(m);
}

static void do_anything(model *m) {
    const size_t n = 1 + (size_t)below(below(3) ? 300 : 5);
    const int what = m->n == 0 ? 0 : below(10);
    int64_t step = last_of(m);
    for (size_t i = 0; i < n; i++) {
        if (what < 5) { /* what comes next, with gaps; some of it in another order */
            step += 1 + (below(10) == 0 ? below(30) : 0);
            to_write[i] = random_record("r", step);
            if (i > 0 && below(10) == 0) {
                const record late = to_write[i];
                to_write[i] = to_write[i - 1];
                to_write[i - 1] = late;
            }
        } else if (what < 7) { /* late */
            to_write[i] = random_record("r", below((int32_t)last_of(m) + 1));
        } else if (what < 9 && i < 40) { /* replaced, by something ordinary */
            to_write[i] = random_record("r", pick(m));
        } else { /* written again, one after the other, as after a restart from a checkpoint */
            step = i == 0 || what < 9 ? m->rows[below((int32_t)m->n)].step : step + 1;
            to_write[i] = random_record("r", step);
        }
    }
    write_and_model(m, n);
}

static void check_model(const model *m) {
    told t;
    read_all(&t, "r");
    must_be_rows(&t, m->rows, m->n);
    told_free(&t);
    must_be_consistent();
    for (int i = 0; i < 3; i++) {
        check_thinned(m, "r", -1, all_points[below(N_POINTS)]);
        check_thinned(m, "r", below((int32_t)last_of(m) + 10), 4 + below(100));
    }
}

START_TEST(whatever_is_done) {
    static const int64_t keep[] = {0, 0, 700, 1500, 3000, 20};
    model m = {.keep = keep[_i]};
    random_state = (uint64_t)_i;
    must_open((history_options){.keep_steps = m.keep, .weak = true});
    for (int i = 0; i < 40; i++) {
        do_anything(&m);
        check_model(&m);
        if (below(20) == 0) { /* fewer are kept from now on, or all */
            close_history();
            m.keep = m.keep == 0 || below(2) ? 600 + below(2000) : 0;
            must_open((history_options){.keep_steps = m.keep, .weak = true});
            size_t before;
            do {
                before = m.n;
                model_trim(&m);
            } while (m.n != before);
            tidy_all();
            check_model(&m);
        }
    }
    for (size_t i = 0; i < N_POINTS; i++) {
        check_thinned(&m, "r", -1, all_points[i]);
    }
    close_history();
    model_free(&m);
}
END_TEST

/* The only spikes lie where a careless choice of rows would miss them. */
START_TEST(spikes) {
    static const int64_t at[] = {1, 2, 254, 255, 256, 257, 511, 512, 3000, 5887, 5888, 5998};
    model m = {0};
    must_open((history_options){.weak = true});
    for (int64_t i = 0; i < 6000; i += 500) {
        for (int64_t j = 0; j < 500; j++) {
            to_write[j] = make_record("r", i + j, 1);
        }
        write_and_model(&m, 500);
    }
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        for (int value = 0; value < 6; value++) {
            for (int sign = -1; sign <= 1; sign += 2) {
                to_write[0] = make_record("r", at[i], 1);
                to_write[0].step.values[charted[value]] = 1e6 * sign;
                write_and_model(&m, 1);
                check_thinned(&m, "r", -1, 14);
                check_thinned(&m, "r", at[i] - 1, 26);
                to_write[0] = make_record("r", at[i], 1);
                write_and_model(&m, 1);
            }
        }
    }
    must_be_consistent();
    close_history();
    model_free(&m);
}
END_TEST

/* As far apart as steps can be. */
START_TEST(steps_far_apart) {
    model m = {0};
    random_state = 7;
    must_open((history_options){.weak = true});
    for (int64_t i = 0; i < 2000; i += 500) {
        for (int64_t j = 0; j < 500; j++) {
            const int64_t step = i + j < 1000 ? i + j : ((int64_t)1 << 53) - 1999 + i + j;
            to_write[j] = random_record("r", step);
        }
        write_and_model(&m, 500);
    }
    ck_assert_int_eq(last_of(&m), (int64_t)1 << 53);
    for (size_t i = 0; i < N_POINTS; i++) {
        check_thinned(&m, "r", -1, all_points[i]);
        check_thinned(&m, "r", 500, all_points[i]);
    }
    must_be_consistent();
    close_history();
    model_free(&m);
}
END_TEST

/* ---- a long run -------------------------------------------------------------------------------------------------- */

static long rows_read, instructions;

static int count_row(unsigned what, void *context, void *statement, void *more) {
    (void)context;
    (void)more;
    if (what == SQLITE_TRACE_ROW) {
        rows_read++;
    } else {
        instructions += sqlite3_stmt_status(statement, SQLITE_STMTSTATUS_VM_STEP, 1);
    }
    return 0;
}

static int count_rows(sqlite3 *db, const char **message, const struct sqlite3_api_routines *api) {
    (void)message;
    (void)api;
    return sqlite3_trace_v2(db, SQLITE_TRACE_ROW | SQLITE_TRACE_PROFILE, count_row, NULL);
}

START_TEST(few_rows_are_read_of_many) {
    enum { MANY = 200000 };
    proto_step first = {0}, last = {0}, lowest = {0};
    int64_t next;
    told t;
    random_state = 9;
    sqlite3_auto_extension((void (*)(void))count_rows);
    must_open((history_options){.weak = true});
    for (int64_t i = 0; i < MANY; i += 512) {
        const int64_t n = MANY - i < 512 ? MANY - i : 512;
        for (int64_t j = 0; j < n; j++) {
            to_write[j] = random_record("r", i + j);
            lowest = i + j == 0 || to_write[j].step.values[0] < lowest.values[0] ? to_write[j].step : lowest;
        }
        first = i == 0 ? to_write[0].step : first;
        last = to_write[n - 1].step;
        must_write_all(to_write, (size_t)n);
    }
    rows_read = instructions = 0;
    ck_assert_int_eq(read_steps(&t, "r", -1, 0, 500, &next, NULL), BX_OK);
    ck_assert_uint_le(t.n, 500);
    ck_assert_uint_ge(t.n, 250);
    ck_assert(same_step(&t.rows[0], &first));
    ck_assert(same_step(&t.rows[t.n - 1], &last));
    double least, greatest;
    find_extremes(t.rows, t.n, PROTO_STEP_TOTAL, &least, &greatest);
    ck_assert_double_eq(least, lowest.values[PROTO_STEP_TOTAL]);
    ck_assert_int_gt(rows_read, 250);
    ck_assert_int_lt(rows_read, 12 * MANY / 256 + 1000);
    ck_assert_int_lt(instructions, 40 * rows_read);
    told_free(&t);
    rows_read = 0;
    ck_assert_int_eq(read_steps(&t, "r", MANY - 100, 50, 0, &next, NULL), BX_OK);
    ck_assert_int_lt(rows_read, 60);
    told_free(&t);
    close_history();
}
END_TEST

/* ---- several threads --------------------------------------------------------------------------------------------- */

static atomic_bool done;

static void *keep_reading(void *argument) {
    (void)argument;
    while (!atomic_load(&done)) {
        static char text[1 << 12];
        proto_run run;
        proto_step latest;
        char tag[HISTORY_TAG];
        bx_error error = {0};
        told t;
        int64_t next;
        *text = '\0';
        HOLDS(history_list(h, "", 10, add_run, text, &error) == BX_OK, "%s", error.text);
        error = (bx_error){0};
        if (history_describe(h, "r", &run, &latest, tag, &error)) {
            HOLDS(!strcmp(error.code, "unknown_run"), "%s", error.text);
        } else {
            HOLDS(latest.step == run.last_step && run.last_loss == latest.values[0], "step %lld",
                  (long long)run.last_step);
        }
        error = (bx_error){0};
        if (read_steps(&t, "r", -1, INT64_MAX - 1, 0, &next, &error)) {
            HOLDS(!strcmp(error.code, "unknown_run"), "%s", error.text);
        } else {
            HOLDS((int64_t)t.n == t.run.steps && t.rows[0].step == t.run.first_step, "%zu rows", t.n);
        }
        told_free(&t);
        (void)history_get_state(h);
        (void)history_exists(h);
    }
    return NULL;
}

static void *keep_deleting(void *argument) {
    int *n = argument;
    while (!atomic_load(&done)) {
        bool found;
        bx_error error = {0};
        HOLDS(history_delete(h, "r", &found, &error) == BX_OK, "%s", error.text);
        *n += found;
        usleep(3000);
    }
    return NULL;
}

START_TEST(one_writes_one_reads_one_deletes) {
    pthread_t reader, deleter;
    int n_deleted = 0;
    atomic_init(&done, false);
    must_open((history_options){.keep_steps = 400, .weak = true});
    ck_assert_int_eq(pthread_create(&reader, NULL, keep_reading, NULL), 0);
    ck_assert_int_eq(pthread_create(&deleter, NULL, keep_deleting, &n_deleted), 0);
    for (int i = 0; i < 400; i++) {
        bool more;
        put_many("r", i * 20, 20);
        HOLDS(history_tidy(h, &more, NULL) == BX_OK, "tidy");
        HOLDS(history_probe(h, NULL) == BX_OK, "probe");
    }
    atomic_store(&done, true);
    pthread_join(reader, NULL);
    pthread_join(deleter, NULL);
    ck_assert_int_gt(n_deleted, 3);
    tidy_all();
    close_history();
    must_be_consistent();
}
END_TEST

int main(void) {
    Suite *suite = suite_create("history");
    TCase *c = tcase_create("history");
    tcase_set_timeout(c, 120);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, nothing_is_made_for_nothing);
    tcase_add_test(c, runs_and_steps);
    tcase_add_test(c, values);
    tcase_add_test(c, entity_tags);
    tcase_add_test(c, deleted);
    tcase_add_test(c, a_slice_exactly);
    tcase_add_test(c, paging);
    tcase_add_test(c, rows_that_nobody_wants);
    tcase_add_test(c, few_steps_are_kept);
    tcase_add_test(c, many_steps_are_kept);
    tcase_add_test(c, fewer_are_kept_after_a_restart);
    tcase_add_test(c, old_runs_go);
    tcase_add_loop_test(c, whatever_is_done, 0, 6);
    tcase_add_test(c, spikes);
    tcase_add_test(c, steps_far_apart);
    tcase_add_test(c, few_rows_are_read_of_many);
    tcase_add_test(c, one_writes_one_reads_one_deletes);
    suite_add_tcase(suite, c);
    return suite_run(suite);
}

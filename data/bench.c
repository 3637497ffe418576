/* bench.c - what igpt reaches on this machine, against the machine's own peak: make bench.
   SPDX-License-Identifier: MIT

       bench_igpt [FILE.csv]    writes the figures there, too

   Each line is a name, the median of several runs, its unit, and which share that is of what is
   best: of the rate of multiply-adds on registers, or of reading memory, measured in turn with it.
   Linked with igpt.c built with -DIGPT_NO_MAIN; OMP_NUM_THREADS sets the number of threads. */

#include "../igpt.h"
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* All that is measured works in here: larger than any cache, on a cache line, never given back. */
enum { SPACE = 1 << 26 };
static _Alignas(64) real space[SPACE];

static _Thread_local volatile double sink; // where sums go, so that no compiler leaves them out

static void need(int ok) {
    if (!ok) fprintf(stderr, "bench: %s\n", error_text()), exit(1);
}

static double seconds_now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the best there is ---------------------------------------------------------------------- */

/* As many numbers as a register holds. */
#if defined __AVX512F__
enum { VEC_BYTES = 64 };
#elif defined __AVX__
enum { VEC_BYTES = 32 };
#else
enum { VEC_BYTES = 16 };
#endif
enum { LANES = VEC_BYTES / sizeof(real) };

#ifdef __GNUC__
typedef real vec __attribute__((vector_size(VEC_BYTES)));
static inline vec multiply_add(vec v, real factor, real term) { return v * factor + term; }
static inline real first_lane(vec v) { return v[0]; }
#else
typedef struct {
    real lane[LANES];
} vec;
static inline vec multiply_add(vec v, real factor, real term) {
    for (int i = 0; i < LANES; i++) v.lane[i] = v.lane[i] * factor + term;
    return v;
}
static inline real first_lane(vec v) { return v.lane[0]; }
#endif

enum { PEAK_SUMS = 12, PEAK_STEPS = 2000000 };

/* Nothing but multiply-adds on registers, in enough independent chains to keep the units busy, each
   from a number that the compiler does not know: it would leave out one that stays the same.
   Where loops are not unrolled, sums lie in memory. */
static void peak_run(void *context) {
    (void)context;
#pragma omp parallel
    {
        vec sums[PEAK_SUMS] = {{0}};
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++) sums[i] = multiply_add(sums[i], 0, space[i]);
        for (int step = 0; step < PEAK_STEPS; step++)
#pragma GCC unroll 12
            for (int i = 0; i < PEAK_SUMS; i++)
                sums[i] = multiply_add(sums[i], (real)0.999, (real)1e-3);
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++) sink = (double)first_lane(sums[i]);
    }
}

/* Nothing but reading. */
static void memory_run(void *context) {
    (void)context;
#pragma omp parallel for schedule(static)
    for (Size start = 0; start < SPACE; start += 4096) {
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (Size i = start; i < start + 4096; i++) sum += space[i];
        sink = (double)sum;
    }
}

/* What a share is of, with the work of one run: 1e9 operations or bytes. */
typedef struct {
    void (*run)(void *);
    double work;
} Best;

static Best peak = {peak_run, 0};
static Best memory = {memory_run, 1e-9 * SPACE * sizeof(real)};

typedef struct {
    double value, best; // in the same unit; best 0: there is nothing to compare it to
} Figure;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median rate of several runs, after one that warms up; fewer runs where one takes long. The
   best is measured in turn with them, since a machine that others use, too, is not equally fast
   from one second to the next. */
static Figure measure(void (*run)(void *), void *context, double work, const Best *best) {
    enum { RUNS = 7 };
    double rates[RUNS], bests[RUNS], began = seconds_now();
    int n = 0;
    for (run(context); n < RUNS && (n < 3 || seconds_now() - began < 3); n++) {
        double first = seconds_now();
        best->run(NULL);
        double second = seconds_now();
        run(context);
        bests[n] = best->work / (second - first);
        rates[n] = work / (seconds_now() - second);
    }
    qsort(rates, (size_t)n, sizeof *rates, ascending);
    qsort(bests, (size_t)n, sizeof *bests, ascending);
    return (Figure){rates[n / 2], bests[n / 2]};
}

static FILE *csv; // or NULL

static void report(Figure figure, const char *unit, const char *format, ...) {
    char name[64];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    printf("%-32s %8.1f %s", name, figure.value, unit);
    if (figure.best > 0) printf("  %.2f", figure.value / figure.best);
    putchar('\n');
    fflush(stdout);
    if (!csv) return;
    fprintf(csv, "\"%s\",%.4g,%s,", name, figure.value, unit);
    if (figure.best > 0) fprintf(csv, "%.3f", figure.value / figure.best);
    putc('\n', csv);
}

/* ---- what is measured ----------------------------------------------------------------------- */

typedef struct {
    Team team;
    Matrix c, a, b;
} Product;

static void product_run(void *context) {
    const Product *p = context;
    matmul(p->team, p->c, p->a, p->b, 0);
}

/* The products of one layer: for each of its four matrices y = x w, dx = dy w', dw = x' dy. */
static void bench_products(const char *model, const Config *config, Size B) {
    static const char *const kinds[] = {"forward", "dx", "dw"};
    Size d = config->n_embd, rows = B * config->n_px * config->n_px;
    const struct {
        const char *name;
        Size in, out;
    } linear[] = {
        {"c_attn", d, 3 * d}, {"attn.c_proj", d, d}, {"c_fc", d, 4 * d}, {"mlp.c_proj", 4 * d, d}};
    Figure logs = {0, 0};
    Team team = team_new();
    for (int i = 0; i < 12; i++) {
        Size in = linear[i / 3].in, out = linear[i / 3].out;
        Matrix x = matrix(space, rows, in), w = matrix(space + rows * in, in, out);
        Matrix dy = matrix(w.data + in * out, rows, out);
        real *c = space + SPACE / 2; // far behind them
        Product products[] = {{team, matrix(c, rows, out), x, w},
                              {team, matrix(c, rows, in), dy, transposed(w)},
                              {team, matrix(c, in, out), transposed(x), dy}};
        double flops = 2 * (double)(rows * in * out);
        Figure figure = measure(product_run, &products[i % 3], 1e-9 * flops, &peak);
        report(figure, "GFLOP/s", "%s %s %s", model, linear[i / 3].name, kinds[i % 3]);
        logs.value += log(figure.value) / 12;
        logs.best += log(figure.best) / 12;
    }
    Figure mean = {exp(logs.value), exp(logs.best)};
    report(mean, "GFLOP/s", "%s matmul, geometric mean", model);
    free(team.memory);
}

/* A model at work. */
typedef struct {
    Model model;
    Batch batch;
    Size passes; // training: a step is so many over batch.B pictures each
    Activations *acts;
    Adam adam;
    Size from; // sampling: the first of POSITIONS
} Work;

static void training_run(void *context) {
    Work *w = context;
    double weight = 1 / (double)(w->batch.B * w->passes);
    for (Size i = 0; i < w->passes; i++)
        objective(&w->model, w->acts, &w->batch, weight, 0, w->adam.grads);
    adam_step(&w->adam, 1, 1e-4);
}

static void bench_training(const char *name, const Config *config, Size B, Size passes) {
    static uint16_t tokens[2 * 32 * 32]; // more is not asked for
    for (Size i = 0; i < 2 * 32 * 32; i++) tokens[i] = (uint16_t)(i % config->n_vocab);
    Work w = {.batch = {.B = B, .tokens = tokens}, .passes = passes};
    need(!model_init(&w.model, *config));
    need((w.acts = activations_new(config, B, KEEP_ALL)) != NULL);
    model_randomise(&w.model, 1);
    Size n = w.model.n_params;
    w.adam = (Adam){n, w.model.params, space, space + n, space + 2 * n};
    memset(space, 0, sizeof space);
    double flops = 3 * model_flops(&w.model) * (double)(B * passes);
    report(measure(training_run, &w, 1e-9 * flops, &peak), "GFLOP/s", "%s, training step", name);
    free(w.acts);
    model_free(&w.model);
}

enum { POSITIONS = 8 }; // of a picture, in its middle

static void sampling_run(void *context) {
    Work *w = context;
    for (Size t = w->from; t < w->from + POSITIONS; t++)
        sampler_step(&w->model, w->acts, t, w->batch.tokens, w->batch.B);
}

/* One image at a time is limited by memory: a position reads all weights of the products, and the
   keys and values of those before it. Several are limited by arithmetic. */
static void bench_sampling(const char *name, const Config *config) {
    static const uint16_t tokens[32 * 32 * 32]; // whichever colours
    Size T = config->n_px * config->n_px, reals = config->n_layer * T * config->n_embd;
    Work w = {.from = T / 2, .batch = {.tokens = tokens}};
    need(!model_init(&w.model, *config));
    model_randomise(&w.model, 1);
    for (const Tensor *t = w.model.tensors; t < w.model.tensors + w.model.n_tensors; t++)
        if (t->rows > 1 && !strstr(t->name, "wte") && !strstr(t->name, "wpe"))
            reals += t->rows * t->cols;
    for (Size B = 1; B <= 32; B = B == 1 ? 16 : 2 * B) {
        double work =
            B == 1 ? (double)reals * sizeof(real) : model_flops(&w.model) / (double)T * (double)B;
        w.batch.B = B;
        need((w.acts = activations_new(config, B, KEEP_PAST)) != NULL);
        report(measure(sampling_run, &w, 1e-9 * work * POSITIONS, B == 1 ? &memory : &peak),
               B == 1 ? "GB/s" : "GFLOP/s", "%s sampling, %lld at a time", name, B);
        free(w.acts);
    }
    model_free(&w.model);
}

static void bench_palette(void) {
    enum { N = 10000000, K = 512, ITERATIONS = 20 };
    static real palette[3 * K];
    uint8_t *rgb = (uint8_t *)space;
    for (Size i = 0; i < 3 * N; i++) { // smooth clouds of colour with noise, as in photographs
        Size pixel = i / 3, plane = i % 3;
        double cloud = 128 + 90 * sin((double)(pixel * (plane + 2)) * 1e-5);
        rgb[i] = (uint8_t)(cloud + (double)(random_bits(1, plane, pixel) % 25));
    }
    double began = seconds_now();
    need(palette_build(palette, K, rgb, N, 1, ITERATIONS, NULL) >= 0);
    report((Figure){seconds_now() - began, 0}, "s", "k-means, 10 million pixels, 20 x");
}

int main(int argc, char **argv) {
    Config igpt_s = {.n_px = 32, .n_vocab = 512, .n_embd = 512, .n_head = 8, .n_layer = 4};
    Config small = {.n_px = 16, .n_vocab = 64, .n_embd = 128, .n_head = 4, .n_layer = 4};
    if (argc > 2) return fprintf(stderr, "usage: %s [FILE.csv]\n", argv[0]), 2;
    if (argc == 2 && !(csv = fopen(argv[1], "w"))) return perror(argv[1]), 1;
    if (csv) fprintf(csv, "name,value,unit,share\n");
    peak.work = 2e-9 * PEAK_SUMS * LANES * PEAK_STEPS * threads_get();
#pragma omp parallel for schedule(static)
    for (Size i = 0; i < SPACE; i++) space[i] = (real)(i % 17) / 17 - (real)0.5;
    Figure arithmetic = measure(peak_run, NULL, peak.work, &peak);
    Figure reading = measure(memory_run, NULL, memory.work, &memory);
    report((Figure){arithmetic.value, 0}, "GFLOP/s", "FMA peak");
    report((Figure){reading.value, 0}, "GB/s", "memory read");
    bench_products("igpt-s", &igpt_s, 2);
    bench_products("d 128", &small, 4);
    bench_training("igpt-s width", &igpt_s, 2, 1);
    bench_training("d 128", &small, 4, 4);
    igpt_s.n_layer = 24;
    bench_sampling("igpt-s", &igpt_s);
    bench_palette();
    if (csv && (ferror(csv) | fclose(csv))) return perror(argv[1]), 1;
    return 0;
}

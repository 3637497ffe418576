/* test_igpt.c - the tests of igpt; `make test` runs them in float, in double, plain and with
   tiny blocks.
   SPDX-License-Identifier: MIT

   `./test_igpt WORD ...` runs the tests whose names hold one of the words. Mathematics is proved
   twice: central differences check every gradient against the code's own forward pass, and
   data/fixture holds PyTorch's numbers for a tiny model. What depends on memory layout, threads or
   files is compared to the last bit. */

#define _DEFAULT_SOURCE 1 // with -std=c11, too, the C library shows what POSIX has, and P_tmpdir
#include "igpt.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Windows and WASI: no child processes to run ./igpt in, a folder that is not removed. */
#if defined _WIN32 || defined __wasi__
#    define ALONE
#else
#    include <signal.h>
#    include <sys/wait.h>
#endif
#ifdef _WIN32
#    define mkdir(path, mode) mkdir(path)
static int remove_any(const char *path) { return remove(path) && rmdir(path); }
#    define remove remove_any
#endif

/* ---- the harness ---------------------------------------------------------------------------- */

enum { IS_DOUBLE = sizeof(real) == 8 };
#ifdef IGPT_PLAIN
static const char build[] = "plain";
#elif defined IGPT_TINY // blocks
static const char build[] = "tiny";
#else
static const char *const build = IS_DOUBLE ? "double" : "float";
#endif

static int failures_here; // of the test that runs

/* Note a failure, and go on. */
#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            failures_here++;                                                                       \
            printf("    %s:%d: %s: ", __FILE__, __LINE__, #condition);                             \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

/* Note a failure of the library, and end the test (or what it calls). */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (condition) break;                                                                      \
        CHECK(!#condition, "%s: %s", #condition, error_text());                                    \
        return;                                                                                    \
    } while (0)

/* Plain comparisons: gcc 12 for aarch64 crashes on fmax over a list. */
static double larger(double a, double b) { return b > a ? b : a; }
static double smaller(double a, double b) { return b < a ? b : a; }

/* Memory and models of a test are given back when it ends; nobody calls free(). */
static void *kept[4096];
static Model kept_models[64];
static int n_kept, n_kept_models;

static void *keep(void *p) {
    if (!p || n_kept == sizeof kept / sizeof *kept) abort();
    return kept[n_kept++] = p;
}

/* After what made or loaded it; passes on whether that went badly. */
static int keep_model(Model *m, int bad) {
    if (n_kept_models == sizeof kept_models / sizeof *kept_models) abort();
    if (!bad) kept_models[n_kept_models++] = *m;
    return bad;
}

static void *zeros(Size count, size_t size) {
    return keep(calloc(count ? (size_t)count : 1, size));
}

static real *filled(Size n, uint64_t stream, double scale) { // with normal numbers
    real *x = zeros(n, sizeof *x);
    for (Size i = 0; i < n; i++) x[i] = (real)(scale * random_normal(7, stream, (uint64_t)i));
    return x;
}

/* Files that tests write go to a fresh folder where the system keeps such. */
static char scratch[128];

static char *scratch_path(const char *format, ...) {
    char name[256], *path = zeros(512, 1);
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    snprintf(path, 512, "%s/%s", scratch, name);
    return path;
}

static void write_bytes(const char *path, const void *bytes, Size n) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, (size_t)n, f) == (size_t)n, "cannot write %s", path);
    if (f) fclose(f);
}

/* The whole file, zero-terminated; NULL where there is none. */
static uint8_t *read_bytes(const char *path, Size *n) {
    FILE *f = fopen(path, "rb");
    *n = 0;
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *n = ftell(f);
    rewind(f);
    uint8_t *bytes = zeros(*n + 1, 1);
    *n = (Size)fread(bytes, 1, (size_t)*n, f);
    fclose(f);
    return bytes;
}

/* A file below the scratch folder. */
static char *read_text(const char *name) {
    return (char *)read_bytes(scratch_path("%s", name), &(Size){0});
}

/* The text must hold these parts, which " ... " divides, one after the other. */
static void check_holds(const char *text, const char *parts) {
    const char *p = text, *rest = parts;
    while (p && *rest) {
        const char *gap = strstr(rest, " ... ");
        size_t n = gap ? (size_t)(gap - rest) : strlen(rest);
        char part[512];
        snprintf(part, sizeof part, "%.*s", (int)n, rest);
        if ((p = strstr(p, part))) p += n;
        rest += gap ? n + 5 : n;
    }
    CHECK(p, "\"%s\" does not say \"%s\"", text, parts);
}

/* What the library was asked to do must have failed, with a sentence that holds these parts. */
static void check_refused(int bad, const char *parts) {
    CHECK(bad, "done, without \"%s\"", parts);
    if (bad) check_holds(error_text(), parts);
}

/* ---- gradients ------------------------------------------------------------------------------

   Every backward pass against central differences of its own forward pass: each layer by itself,
   then every tensor of a model under every objective; and of a fixture, for which PyTorch's
   gradients are known, too. Differences are taken in double alone: in float they are blunt. The
   error of a gradient is relative: the largest difference over the largest element. */

static const double gradient_tolerance = 1e-7, pytorch_tolerance = IS_DOUBLE ? 1e-9 : 1e-4;

/* The largest difference between two lists; infinite where one is not a number. */
static double reals_apart(const real *a, const real *b, Size n) {
    double most = 0;
    for (Size i = 0; i < n; i++) {
        double apart = fabs((double)a[i] - (double)b[i]);
        if (!(apart <= most)) most = isnan(apart) ? INFINITY : apart;
    }
    return most;
}

static int same_bits(const real *a, const real *b, Size n) {
    return !memcmp(a, b, (size_t)n * sizeof *a);
}

static double relative_error(const real *is, const real *wanted, Size n) {
    double largest = 1e-12;
    for (Size i = 0; i < n; i++) largest = larger(largest, fabs((double)wanted[i]));
    return reals_apart(is, wanted, n) / largest;
}

/* The error of the gradient of loss(context) by x (n); where n is large, by elements of x drawn at
   random; 0 in float. loss() computes everything anew from x. */
typedef double Loss(void *context);

static double difference_error(const real *gradient, real *x, Size n, Loss *loss, void *context) {
    enum { MOST = 400 };
    const double h = 1e-4;
    real numeric[MOST] = {0}, given[MOST] = {0};
    Size count = !IS_DOUBLE ? 0 : n < MOST ? n : MOST;
    for (Size k = 0; k < count; k++) {
        Size i = n <= MOST ? k : (Size)(random_bits(1, 1, (uint64_t)k) % (uint64_t)n);
        double at[5];
        real was = x[i];
        for (int step = 0; step < 5; step++) {
            x[i] = was + (real)(h * (step - 2));
            at[step] = step == 2 ? 0 : loss(context);
        }
        x[i] = was;
        numeric[k] = (real)((8 * (at[3] - at[1]) - (at[4] - at[0])) / (12 * h));
        given[k] = gradient[i];
    }
    return relative_error(given, numeric, count);
}

/* The layers, and sizes B, T, d, H to try them with, for K colours: several bands of attention, the
   last not full; wide heads; a single position; more keys than matmul takes in a block. */
enum { LAYER_NORM, LAYER_EMBEDDING, LAYER_ATTENTION, LAYER_GELU, LAYER_NLL, LAYERS };
static const char *const layer_names[] = {"RMS norm", "embedding", "attention", "gelu", "nll"};
static const Size layer_sizes[][4] = {{2, 70, 12, 3}, {1, 77, 40, 1}, {3, 1, 8, 2}, {1, 260, 8, 1}};

/* Random tokens and labels, and a mask for BERT. */
static Batch random_batch(Size B, Size T, Size K, Size C, int masked) {
    uint16_t *tokens = zeros(B * T, sizeof *tokens), *labels = zeros(B, sizeof *labels);
    uint8_t *mask = zeros(B * T, 1);
    for (Size i = 0; i < B * T; i++) {
        tokens[i] = (uint16_t)(random_bits(3, 1, (uint64_t)i) % (uint64_t)K);
        mask[i] = i % T == 2 || random_bits(3, 2, (uint64_t)i) % 4 == 0;
    }
    for (Size b = 0; b < B; b++) labels[b] = (uint16_t)((b + 3) * 5 % C);
    return (Batch){B, tokens, masked ? mask : NULL, labels};
}

/* A layer of one or two inputs x. Its loss is the sum of out * dy, of which dx is the gradient. */
typedef struct {
    int kind;
    Attention a; // with the sizes of the others, too
    Size K;
    Batch batch;
    Size n_x[2];
    real *x[2], *dx[2];
    real *out, *dy, *left; // (B, T, d) and more than enough; left: by forward for backward
} LayerCheck;

static double layer_loss(void *context) {
    const LayerCheck *l = context;
    const Size K = l->K, d = l->a.d, rows = l->a.B * l->a.T;
    real *x = l->x[0], *w = l->x[1], *out = l->out, *left = l->left;
    double sum = 0;
    switch (l->kind) {
    case LAYER_NORM: rms_forward(out, left, x, w, rows, d); break;
    case LAYER_EMBEDDING: embed_forward(out, &l->batch, x, w, l->a.T, d, K, 0, l->a.T); break;
    case LAYER_ATTENTION: attention_forward(&l->a, out, left, x); break;
    case LAYER_GELU: gelu_forward(out, x, rows, d); break;
    case LAYER_NLL:
        memcpy(left, x, (size_t)(rows * K) * sizeof *x);
        cross_entropy_forward(left, out, l->batch.tokens, rows, K);
    }
    for (Size i = 0; i < rows * d; i++) sum += (double)out[i] * (double)l->dy[i];
    return sum;
}

/* After layer_loss. */
static void layer_backward(const LayerCheck *l) {
    const Size K = l->K, d = l->a.d, rows = l->a.B * l->a.T;
    real *x = l->x[0], *w = l->x[1], *dx = l->dx[0], *dw = l->dx[1], *dy = l->dy, *left = l->left;
    real *partial = filled(rms_partials(rows) * d, 8, 1);
    switch (l->kind) {
    case LAYER_NORM: rms_backward(dx, dw, partial, dy, x, w, left, rows, d); break;
    case LAYER_EMBEDDING: embed_backward(dx, dw, dy, &l->batch, l->a.T, d, K); break;
    case LAYER_ATTENTION: attention_backward(&l->a, dx, dy, x, l->out, left); break;
    case LAYER_GELU:
        memcpy(dx, dy, (size_t)(rows * d) * sizeof *x);
        gelu_backward(dx, left, x, rows, d);
        CHECK(reals_apart(left, l->out, rows * d) == 0, "backward's g is not forward's");
        break;
    case LAYER_NLL:
        memcpy(dx, left, (size_t)(rows * K) * sizeof *x);
        cross_entropy_backward(dx, l->batch.tokens, dy, rows, K);
    }
}

/* The layer with all it needs. Attention's scratch is not a number: nothing may come of it. */
static LayerCheck layer_make(int kind, const Size size[4], int causal) {
    const Size K = 7, B = size[0], T = size[1], d = size[2], n = B * T * d;
    const Size inputs[][2] = {{n, d}, {(K + 1) * d, T * d}, {3 * n, 0}, {n, 0}, {B * T * K, 0}};
    Team team = {threads_get(), attention_scratch(T, d / size[3]), NULL};
    team.memory = zeros(team.threads * team.each, sizeof(real));
    LayerCheck l = {.kind = kind, .K = K, .out = zeros(n, sizeof(real)), .dy = filled(n, 3, 1)};
    l.a = (Attention){B, T, d, size[3], causal, team};
    for (Size i = 0; i < team.threads * team.each; i++) team.memory[i] = (real)NAN;
    l.batch = random_batch(B, T, K, 1, !causal);
    l.left = zeros(n, sizeof(real));
    for (int i = 0; i < 2; i++) {
        l.n_x[i] = inputs[kind][i];
        l.x[i] = filled(l.n_x[i], (uint64_t)(4 + i), kind == LAYER_ATTENTION ? 1 : 3);
        l.dx[i] = filled(l.n_x[i], 6, kind <= LAYER_EMBEDDING ? 0 : 1); // the others write it
    }
    return l;
}

/* Attention's results so far against those of the plain routines. */
static void check_plain_attention(const LayerCheck *l) {
    const Attention *a = &l->a;
    const double tolerance = IS_DOUBLE ? 1e-13 : 2e-6;
    Size n = a->B * a->T * a->d, rows = a->B * a->H * a->T;
    real *out = filled(n, 7, 1), *lse = filled(rows, 7, 1), *dqkv = filled(3 * n, 7, 1);
    attention_plain_forward(a, out, lse, l->x[0]);
    attention_plain_backward(a, dqkv, l->dy, l->x[0], out, lse);
    double forward = larger(reals_apart(l->out, out, n), reals_apart(l->left, lse, rows));
    double backward = reals_apart(l->dx[0], dqkv, 3 * n);
    CHECK(forward < tolerance && backward < 10 * tolerance,
          "attention, T %lld, causal %d: %g, backward %g", a->T, a->causal, forward, backward);
}

static void test_layer_gradients(void) {
    threads_set(1);
    for (int i = 0; i < LAYERS * 8; i++) {
        int kind = i / 8, causal = i % 2;
        LayerCheck l = layer_make(kind, layer_sizes[i / 2 % 4], causal);
        layer_loss(&l);
        layer_backward(&l);
        if (kind == LAYER_ATTENTION) check_plain_attention(&l);
        for (int k = 0; k < 2; k++) {
            double error = difference_error(l.dx[k], l.x[k], l.n_x[k], layer_loss, &l);
            CHECK(error < gradient_tolerance, "%s, T %lld, causal %d, by input %d: %g",
                  layer_names[kind], l.a.T, causal, k, error);
        }
    }
}

/* What a model may have to minimise: first the fixture's three, then the others there are. */
static const struct Aim {
    const char *name;
    int objective;
    double gen, clf; // weights
} aims[] = {
    {"ar", OBJECTIVE_AR, 1, 0},
    {"bert", OBJECTIVE_BERT, 1, 0},
    {"joint", OBJECTIVE_AR, 1, 1},
    {"BERT, joint", OBJECTIVE_BERT, 1, 0.7},
    {"AR, class only", OBJECTIVE_AR, 0, 0.7},
    {"BERT, class only", OBJECTIVE_BERT, 0, 0.7},
};
enum { AIM_AR, AIM_BERT, AIM_JOINT, FIXTURE_AIMS, AIM_BERT_JOINT = FIXTURE_AIMS };
enum { AIMS = sizeof aims / sizeof *aims };

/* A model, a batch for it, and the gradient of its aim's mean over that batch. */
typedef struct {
    const struct Aim *aim;
    Model model;
    Activations *acts;
    Batch batch;
    real *grads;
} Whole;

static Safetensors fixture; // with PyTorch's numbers; open in a test that asked for it, to its end

/* Sizes n_px, K, d, H, L, C. */
static const Config whole_small = {3, 9, 12, 3, 3, 4, OBJECTIVE_AR};
static const Config whole_wide = {12, 9, 48, 3, 2, 4, OBJECTIVE_AR};
static const Config whole_drawing = {6, 11, 32, 4, 3, 1, OBJECTIVE_AR};
static const Config whole_fixture = {4, 12, 16, 2, 2, 5, OBJECTIVE_AR};

/* A model all at random, the heads too, which start at zero otherwise. folder: where to save it. */
static int random_model(Model *m, Config c, const char *folder) {
    if (keep_model(m, model_init(m, c))) return -1;
    memcpy(m->params, filled(m->n_params, 9, 0.3), (size_t)m->n_params * sizeof(real));
    memcpy(m->palette, filled(3 * c.n_vocab, 3, 0.3), (size_t)(3 * c.n_vocab) * sizeof(real));
    return folder ? model_save(m, scratch_path("%s", folder), F32) : 0;
}

static int whole_make(Whole *w, Config c, const struct Aim *aim, Size B, int what_to_keep) {
    c.objective = aim->objective;
    *w = (Whole){.aim = aim};
    if (random_model(&w->model, c, NULL)) return -1;
    Size T = c.n_px * c.n_px;
    w->acts = keep(activations_new(&c, B, what_to_keep));
    w->batch = random_batch(B, T, c.n_vocab, c.n_class, c.objective == OBJECTIVE_BERT);
    w->grads = zeros(w->model.n_params, sizeof(real));
    return 0;
}

static Losses whole_pass(const Whole *w, real *grads) {
    double B = (double)w->batch.B;
    return objective(&w->model, w->acts, &w->batch, w->aim->gen / B, w->aim->clf / B, grads);
}

static double whole_loss(void *context) {
    const Whole *w = context;
    Losses sums = whole_pass(w, NULL);
    return (w->aim->gen * sums.gen + w->aim->clf * sums.clf) / (double)w->batch.B;
}

/* The n elements of a file's tensor `prefix` `name`; zeros, and a failure noted, if not there. */
static real *stored_reals(const Safetensors *file, const char *prefix, const char *name, Size n) {
    char full[128];
    Stored s;
    real *x = zeros(n, sizeof *x);
    snprintf(full, sizeof full, "%s%s", prefix, name);
    CHECK(safetensors_find(file, full, &s) && s.count == n && !safetensors_read(file, &s, x, NULL),
          "no %lld numbers %s", n, full);
    return x;
}

static uint16_t *stored_tokens(const Safetensors *file, const char *name, Size n) {
    const real *x = stored_reals(file, "", name, n);
    uint16_t *tokens = zeros(n, sizeof *tokens);
    for (Size i = 0; i < n; i++) tokens[i] = (uint16_t)x[i];
    return tokens;
}

/* The fixture's model and batch. */
enum { FIXTURE_B = 3, FIXTURE_T = 16, FIXTURE_D = 16, FIXTURE_K = 12 };

static int fixture_open(Whole *w, const struct Aim *aim) {
    enum { B = FIXTURE_B, N = FIXTURE_B * FIXTURE_T };
    if (whole_make(w, whole_fixture, aim, B, KEEP_ALL)) return -1;
    safetensors_close(&fixture);
    if (safetensors_open(&fixture, "data/fixture/tiny.safetensors")) return -1;
    for (const Tensor *t = w->model.tensors; t < w->model.tensors + w->model.n_tensors; t++) {
        Size n = t->rows * t->cols;
        const real *values = stored_reals(&fixture, "", t->name, n);
        memcpy(w->model.params + t->offset, values, (size_t)n * sizeof *values);
    }
    const uint16_t *masked = stored_tokens(&fixture, "input.mask", N);
    uint8_t *mask = zeros(N, 1);
    for (Size i = 0; i < N; i++) mask[i] = (uint8_t)masked[i];
    w->batch.tokens = stored_tokens(&fixture, "input.tokens", N);
    w->batch.labels = stored_tokens(&fixture, "input.labels", B);
    w->batch.mask = aim->objective == OBJECTIVE_BERT ? mask : NULL;
    return 0;
}

/* Of every tensor the gradient's error against central differences and, in the fixture, PyTorch. */
static Losses check_gradients(Whole *w, int print) {
    const char *aim = w->aim->name;
    Losses sums = whole_pass(w, w->grads);
    char prefix[32];
    snprintf(prefix, sizeof prefix, "%s.grad.", aim);
    for (const Tensor *t = w->model.tensors; t < w->model.tensors + w->model.n_tensors; t++) {
        const real *gradient = w->grads + t->offset;
        Size n = t->rows * t->cols;
        real *x = w->model.params + t->offset;
        double pytorch = 0, error = difference_error(gradient, x, n, whole_loss, w);
        if (fixture.file)
            pytorch = relative_error(gradient, stored_reals(&fixture, prefix, t->name, n), n);
        if (print) printf("%-36s%-11s%-13.1e%.1e\n", t->name, aim, error, pytorch);
        CHECK(error < gradient_tolerance, "%s, %s: %g from differences", t->name, aim, error);
        CHECK(pytorch < pytorch_tolerance, "%s, %s: %g from PyTorch", t->name, aim, pytorch);
    }
    return sums;
}

static void check_near(const char *prefix, const char *name, const real *x, Size n) {
    double apart = reals_apart(x, stored_reals(&fixture, prefix, name, n), n);
    CHECK(apart < pytorch_tolerance, "%s%s: off by %g", prefix, name, apart);
}

/* Gradients, losses and logits of the fixture, printed for --table. */
static void check_fixture(int print) {
    static const char *const losses[] = {".loss", ".loss", ".gen_loss"};
    if (print && !IS_DOUBLE) printf("no differences: in float they are blunt\n");
    if (print) printf("%-36s%-11s%-13s%s\n", "tensor", "objective", "differences", "PyTorch");
    threads_set(1);
    for (int i = 0; i < FIXTURE_AIMS; i++) {
        Whole w;
        REQUIRE(!fixture_open(&w, &aims[i]));
        Losses sums = check_gradients(&w, print);
        real gen = (real)(sums.gen / FIXTURE_B), clf = (real)(sums.clf / FIXTURE_B);
        check_near(aims[i].name, losses[i], &gen, 1);
        if (i == AIM_JOINT) check_near("joint", ".clf_loss", &clf, 1);
        model_forward(&w.model, w.acts, &w.batch);
        const real *logits = model_logits(&w.model, w.acts, FIXTURE_B);
        Size n = FIXTURE_B * FIXTURE_T * FIXTURE_K;
        if (i != AIM_JOINT) check_near(aims[i].name, ".logits", logits, n);
    }
}

static void test_gradients(void) {
    check_fixture(0);
    safetensors_close(&fixture);
    for (int i = 0; i < AIMS; i++) { // of odd sizes, with differences alone
        Whole w;
        REQUIRE(!whole_make(&w, whole_small, &aims[i], 2, KEEP_ALL));
        check_gradients(&w, 0);
    }
}

/* The fixture's AR pass in steps, each from the result of the one before: first the eight that come
   again in every block, then the last three. A SUM adds the result four steps back. */
enum { PRODUCT = LAYERS, SUM, TRACE_STEPS = 20, TRACE_ROWS = FIXTURE_B * FIXTURE_T };
static const struct Step {
    const char *name;        // %d: the block
    int kind, width, tensor; // width of what it gives; its weights' number among block 0's
} pass_steps[] = {{"h.%d", SUM, 16, 7},
                  {"block.%d.ln_1", LAYER_NORM, 16, 2},
                  {"block.%d.c_attn", PRODUCT, 48, 3},
                  {"block.%d.heads", LAYER_ATTENTION, 16, 0},
                  {"block.%d.a", SUM, 16, 4},
                  {"block.%d.ln_2", LAYER_NORM, 16, 5},
                  {"block.%d.c_fc", PRODUCT, 64, 6},
                  {"block.%d.gelu", LAYER_GELU, 64, 0},
                  {"ln_f", LAYER_NORM, 16, 2},
                  {"logits", PRODUCT, 12, 3},
                  {"nll", LAYER_NLL, 1, 0}};
static const struct Step *step_at(int i) { return &pass_steps[i <= 16 ? i % 8 : i - 9]; }

/* PyTorch's result of step i, or with "ar.d_" the loss' gradient by it. */
static char traced_name[64]; // the last step asked for
static real *traced(const Safetensors *file, const char *prefix, int i) {
    snprintf(traced_name, sizeof traced_name, step_at(i)->name, i / 8);
    return stored_reals(file, prefix, traced_name, TRACE_ROWS * step_at(i)->width);
}

/* Every step and its backward pass on what PyTorch had there, in order, so that a failure names the
   place; but n^l is from the model's own pass. Scores and probabilities igpt never stores. */
static void test_trace(void) {
    enum { T = FIXTURE_T, D = FIXTURE_D, ROWS = TRACE_ROWS, IN_BLOCK = 6 };
    Whole w;
    REQUIRE(!fixture_open(&w, &aims[AIM_AR]));
    safetensors_close(&fixture);
    REQUIRE(!safetensors_open(&fixture, "data/fixture/trace.safetensors"));
    LayerCheck l = layer_make(LAYER_ATTENTION, (const Size[]){FIXTURE_B, T, D, 2}, 1);
    l.K = FIXTURE_K, l.batch = w.batch, l.left = zeros(ROWS * 4 * D, sizeof(real));
    Team team = team_new();
    keep(team.memory);
    Size n_layers = w.model.config.n_layer + 1;
    real *own = zeros(ROWS * n_layers * D, sizeof *own); // (B, n_layers, T, d)
    model_features(&w.model, w.acts, &w.batch, POOL_NONE, 1, own);
    for (int i = 1; i < TRACE_STEPS; i++) {
        const struct Step *s = step_at(i);
        const Tensor *t = &w.model.tensors[s->tensor + (i - 1) / 8 * IN_BLOCK];
        Size from = step_at(i - 1)->width, n = ROWS * s->width;
        Matrix weight = matrix(w.model.params + t->offset, t->rows, t->cols);
        real *x = traced(&fixture, "ar.", i - 1), *dy = traced(&fixture, "ar.d_", i);
        real *dx = zeros(ROWS * from, sizeof *dx), *y = zeros(n, sizeof *y);
        if (s->kind < LAYERS) { // a norm's input goes into a sum, too
            if (s->kind == LAYER_NORM && i < 16) dx = traced(&fixture, "ar.d_", i + 3);
            l.kind = s->kind, l.out = y, l.dy = dy, l.x[0] = x, l.x[1] = weight.data;
            l.a.d = s->width, l.dx[0] = dx, l.dx[1] = zeros(from, sizeof *dx);
            layer_loss(&l);
            layer_backward(&l);
        } else {
            if (weight.rows != from) weight = transposed(weight); // lm_head
            if (s->kind == SUM) y = traced(&fixture, "ar.", i - 4);
            Matrix out = matrix(y, ROWS, s->width), dout = matrix(dy, ROWS, s->width);
            matmul(team, out, matrix(x, ROWS, from), weight, s->kind == SUM);
            matmul(team, matrix(dx, ROWS, from), dout, transposed(weight), 0);
        }
        for (Size b = 0; b < FIXTURE_B && i % 8 == 1; b++) // n^l is the model's own
            memcpy(y + b * T * D, own + (b * n_layers + i / 8) * T * D, T * D * sizeof *y);
        double back = relative_error(dx, traced(&fixture, "ar.d_", i - 1), ROWS * from);
        double there = relative_error(y, traced(&fixture, "ar.", i), n);
        CHECK(larger(there, back) < pytorch_tolerance, "%s: %g, back %g", traced_name, there, back);
    }
}

/* What --table FILE shows: someone else's gradients of the fixture against PyTorch's. Rounding to
   the file's type is no error. Returns main's status. */
static int gradcheck(const char *path, FILE *out) {
    static const double most[] = {1e-9, 1e-5, 1e-3, 1e-2, 0}; // F64, F32, F16, BF16, I64
    Whole w;
    Safetensors theirs;
    int found = 0, missing = 0;
    char name[128], first[128] = "";
    if (fixture_open(&w, &aims[AIM_AR]) || safetensors_open(&theirs, path))
        return fprintf(out, "%s\n", error_text()), 1;
    fprintf(out, "%-49s%-10s%-11s%s\n", "tensor", "error", "cosine", "ratio");
    for (Size i = 0; i < FIXTURE_AIMS * w.model.n_tensors; i++) {
        const Tensor *t = &w.model.tensors[i % w.model.n_tensors];
        Size n = t->rows * t->cols;
        Stored s;
        snprintf(name, sizeof name, "%s.grad.%s", aims[i / w.model.n_tensors].name, t->name);
        int there = safetensors_find(&theirs, name, &s);
        fprintf(out, there ? "%-49s" : "%-49sis not in the file\n", name);
        found += there, missing += !there;
        if (!there) continue;
        const real *y = stored_reals(&fixture, "", name, n);
        real *x = zeros(n, sizeof *x);
        int bad = s.count != n || safetensors_read(&theirs, &s, x, NULL);
        double xx = 0, xy = 0, yy = 0, error = bad ? INFINITY : relative_error(x, y, n);
        for (Size k = 0; k < n; k++) {
            double is = (double)x[k], wanted = (double)y[k];
            xx += is * is, xy += is * wanted, yy += wanted * wanted;
        }
        int differs = bad || error > most[s.dtype];
        fprintf(out, "%-10.1e%-11.7f%.7f%s\n", error, xx * yy > 0 ? xy / sqrt(xx * yy) : xx == yy,
                yy > 0 ? sqrt(xx / yy) : xx == yy, differs ? "  differs" : "");
        if (differs && !*first) memcpy(first, name, sizeof first);
    }
    fprintf(out, "%d compared, %d not in the file; %s%s\n", found, missing,
            *first ? "first that differs: " : "none differs", first);
    safetensors_close(&theirs);
    return *first || !found;
}

/* The fixture agrees; a file of two tensors does not, one of them transposed and one halved. */
static void test_gradcheck(void) {
    enum { D = FIXTURE_D, N = D * D, KD = FIXTURE_K * D };
    static const char head[] = "bert.grad.lm_head.weight", wpe[] = "ar.grad.transformer.wpe.weight";
    const char *path = scratch_path("theirs.safetensors");
    FILE *out = fopen(scratch_path("said.txt"), "wb");
    Whole w;
    REQUIRE(out && !fixture_open(&w, &aims[AIM_AR]));
    real *x = stored_reals(&fixture, "", head, KD), *y = stored_reals(&fixture, "", wpe, N);
    real *turned = zeros(N, sizeof *y);
    for (int k = 0; k < KD; k++) x[k] /= 2;
    for (int k = 0; k < N; k++) turned[k % D * D + k / D] = y[k];
    const Stored few[] = {{head, F32, 1, {KD}, 0, 0, 0, x, NULL},
                          {wpe, F64, 1, {N}, 0, 0, 0, turned, NULL}};
    REQUIRE(!safetensors_write(path, few, 2, NULL));
    CHECK(!gradcheck("data/fixture/tiny.safetensors", out) && gradcheck(path, out), "status");
    fclose(out);
    check_holds(read_text("said.txt"),
                "51 compared, 0 not in the file; none differs\n ... 1.0000000  differs\n ... "
                "0.5000000  differs\n ... 2 compared, 49 not in the file; first that differs: "
                "ar.grad.transformer.wpe.weight\n");
}

/* Gradients add up over passes, and a picture without a label adds nothing to L_CLF: four pictures
   at once, the last without, give what two (L_GEN, then L_CLF), one, and L_GEN of the last give. */
static void test_gradients_add_up(void) {
    enum { B = 4, T = 9 };
    const double share = 1.0 / B;
    Whole w;
    REQUIRE(!whole_make(&w, whole_small, &aims[AIM_JOINT], B, KEEP_ALL));
    const uint16_t labels[B] = {3, 0, 2, NO_LABEL}, *tokens = w.batch.tokens;
    const Batch parts[] = {{2, tokens, NULL, labels},
                           {2, tokens, NULL, labels},
                           {1, tokens + 2 * T, NULL, labels + 2},
                           {1, tokens + 3 * T, NULL, labels + 3}};
    real *grads = zeros(w.model.n_params, sizeof *grads);
    w.batch.labels = labels;
    Losses all = whole_pass(&w, w.grads), sums = {0, 0, 0};
    for (int i = 0; i < 4; i++) {
        double gen = i == 1 ? 0 : share, class = i % 3 ? share : 0;
        Losses part = objective(&w.model, w.acts, &parts[i], gen, class, grads);
        sums.gen += part.gen, sums.clf += part.clf, sums.correct += part.correct;
    }
    double apart = reals_apart(w.grads, grads, w.model.n_params);
    CHECK(apart < (IS_DOUBLE ? 1e-14 : 1e-6), "gradients are %g apart", apart);
    CHECK(fabs(all.gen - sums.gen) < 1e-5, "L_GEN %g, in parts %g", all.gen, sums.gen);
    CHECK(fabs(all.clf - sums.clf) < 1e-5, "L_CLF %g, in parts %g", all.clf, sums.clf);
    CHECK(all.clf > 0 && all.correct == sums.correct, "%lld right, %lld", all.correct,
          sums.correct);
}

/* ---- numbers -------------------------------------------------------------------------------- */

static void test_exp(void) {
    double most = 0;
    for (double x = -86.5; x < 88.7; x += 0.00137) {
        double is = (double)real_exp((real)x), wanted = exp((double)(real)x);
        most = larger(most, fabs(is - wanted) / (wanted * (IS_DOUBLE ? 0x1p-52 : 0x1p-23)));
    }
    CHECK(most <= 2, "%.2f ulp from libm", most);
    CHECK(isinf(real_exp(1000)) && real_exp(-1000) == 0, "no limits");
    CHECK(isinf(real_exp((real)INFINITY)) && real_exp((real)-INFINITY) == 0, "infinity is lost");
    CHECK(isnan(real_exp((real)NAN)) && real_exp(0) == 1, "NaN is lost, or e^0 is not 1");
}

/* One number of each kind, by which all are known: their formulas have no cases. */
static void test_random(void) {
    enum { CARDS = 100 };
    uint64_t bits = random_bits(1, 2, 3);
    CHECK(bits == 0x8e1e6eacaa45f47fu, "bits %llx", (unsigned long long)bits);
    CHECK(random_uniform(1, 2, 3) == (double)(bits >> 11) * 0x1p-53, "%g", random_uniform(1, 2, 3));
    CHECK(fabs(random_normal(1, 2, 3) - (-0.3194482745817852)) < 1e-12, "%g",
          random_normal(1, 2, 3));
    Size order[CARDS];
    int seen[CARDS] = {0}, moved = 0;
    for (Size i = 0; i < CARDS; i++) order[i] = i;
    random_shuffle(order, CARDS, 5, 6);
    for (Size i = 0; i < CARDS; i++) {
        moved += order[i] != i;
        CHECK(seen[order[i]]++ == 0, "%lld appears twice", order[i]);
    }
    CHECK(moved > 80, "only %d moved", moved);
}

/* ---- matmul: plain against fast ------------------------------------------------------------- */

static void multiply(int threads, Matrix c, Matrix a, Matrix b, int accumulate) {
    threads_set(threads);
    Team team = team_new();
    if (!team.memory) abort();
    matmul(team, c, a, b, accumulate);
    free(team.memory);
}

/* Sizes at and around the edges of tiles and blocks, transposed or not, added or not. Rows lie
   further apart than they are long, and what is between must stay as it is. The first rows by
   themselves, on other threads, have the same bits: sampling relies on it. */
static void test_matmul(void) {
    static const int sizes[][3] = {{1, 1, 1},      {1, 7, 5},    {2, 33, 9},      {13, 31, 17},
                                   {14, 32, 64},   {15, 33, 65}, {29, 65, 300},   {32, 100, 257},
                                   {33, 100, 257}, {64, 12, 16}, {100, 48, 513},  {173, 90, 40},
                                   {7, 1100, 3},   {300, 1, 20}, {520, 530, 300}, {1, 700, 300},
                                   {16, 3000, 600}};
    enum { MOST_A = 160000, MOST_B = 2000000, MOST_C = 280000 };
    real *a = filled(MOST_A, 1, 1), *b = filled(MOST_B, 2, 1), *before = filled(MOST_C, 3, 1);
    real *fast = zeros(MOST_C, sizeof *fast), *plain = zeros(MOST_C, sizeof *plain);
    real *few = zeros(MOST_C, sizeof *few);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int flags = 0; flags < 8; flags++) { // 1: a', 2: b', 4: +=
            Size M = sizes[s][0], N = sizes[s][1], K = sizes[s][2], n = M * (N + 2);
            Size rows = 1 + (M - 1) * flags / 8;
            Matrix x = {a, M, K, K + 3, 1}, y = {b, K, N, N + 1, 1};
            if (flags & 1) x = transposed((Matrix){a, K, M, M + 3, 1});
            if (flags & 2) y = transposed((Matrix){b, N, K, K + 1, 1});
            memcpy(fast, before, (size_t)n * sizeof *fast);
            memcpy(few, before, (size_t)n * sizeof *few);
            memcpy(plain, before, (size_t)n * sizeof *plain);
            multiply(1 + flags % 3, (Matrix){fast, M, N, N + 2, 1}, x, y, flags >> 2);
            matmul_plain((Matrix){plain, M, N, N + 2, 1}, x, y, flags >> 2);
            x.rows = rows;
            multiply(1 + (flags + (int)s) % 5, (Matrix){few, rows, N, N + 2, 1}, x, y, flags >> 2);
            double apart = reals_apart(fast, plain, n);
            CHECK(apart < (IS_DOUBLE ? 1e-12 : 1e-5) * sqrt((double)K) * 4,
                  "%lld x %lld x %lld, flags %d: off by %g", M, N, K, flags, apart);
            CHECK(same_bits(fast, few, rows * (N + 2)), "%lld x %lld x %lld, flags %d: %lld rows",
                  M, N, K, flags, rows);
        }
}

/* ---- the model and its training ------------------------------------------------------------- */

/* Steps of training; returns the parameters. */
static real *train_whole(Whole *w, Size steps) {
    Size n = w->model.n_params;
    Adam adam = {n, w->model.params, w->grads, zeros(n, sizeof(real)), zeros(n, sizeof(real))};
    for (Size step = 1; step <= steps; step++) {
        whole_pass(w, w->grads);
        adam_step(&adam, step, 0.01);
        CHECK(w->grads[0] == 0 && w->grads[n - 1] == 0, "gradients are not cleared");
    }
    return w->model.params;
}

static void test_pytorch_adam(void) {
    Whole w;
    REQUIRE(!fixture_open(&w, &aims[AIM_JOINT]));
    const real *params = train_whole(&w, 3);
    for (const Tensor *t = w.model.tensors; t < w.model.tensors + w.model.n_tensors; t++)
        check_near("adam3.", t->name, params + t->offset, t->rows * t->cols);
}

/* Trained on other threads, and with blocks that are run again in place of most memory. */
static void test_same_bits(void) {
    static const int threads[] = {1, 2, 3, 5};
    Size all = activations_bytes(&whole_wide, 3, KEEP_ALL);
    CHECK(activations_bytes(&whole_wide, 3, KEEP_INPUTS) < all, "recomputing saves no memory");
    for (int aim = AIM_JOINT; aim <= AIM_BERT_JOINT; aim++) {
        const real *params[4];
        for (int i = 0; i < 4; i++) {
            Whole w;
            threads_set(threads[i]);
            REQUIRE(!whole_make(&w, whole_wide, &aims[aim], 3, i % 2 ? KEEP_INPUTS : KEEP_ALL));
            model_randomise(&w.model, 1);
            params[i] = train_whole(&w, 4);
            CHECK(same_bits(params[0], params[i], w.model.n_params), "%d threads", threads[i]);
        }
    }
}

/* A program's threads may each pass a batch, with memory of their own: the gradients are those of
   one that is alone. */
static void test_callers_side_by_side(void) {
    enum { CALLERS = 5 };
    Whole w[CALLERS];
    threads_set(1);
    for (int i = 0; i < CALLERS; i++)
        REQUIRE(!whole_make(&w[i], whole_wide, &aims[AIM_JOINT], 1, KEEP_ALL));
#pragma omp parallel for num_threads(4) schedule(static, 1)
    for (int i = 1; i < CALLERS; i++) whole_pass(&w[i], w[i].grads);
    whole_pass(&w[0], w[0].grads);
    for (int i = 0; i < CALLERS; i++) {
        CHECK(same_bits(w[0].grads, w[i].grads, w[0].model.n_params), "caller %d", i);
    }
}

static void test_learning_rate(void) {
    const double first = learning_rate(0, 100, 10, 1), peak = learning_rate(9, 100, 10, 1);
    const double middle = learning_rate(55, 100, 10, 1), last = learning_rate(99, 100, 10, 1);
    CHECK(fabs(first - 0.1) < 1e-12 && peak == 1, "warm-up from %g to %g", first, peak);
    CHECK(fabs(middle - 0.5) < 1e-12 && last < 1e-3, "half way %g, at the end %g", middle, last);
    CHECK(learning_rate(0, 10, 0, 1) == 1, "no warm-up gives %g", learning_rate(0, 10, 0, 1));
}

/* The published d, H, L, and parameters in whole millions, at 32 x 32 pixels of 512 colours. */
static void test_parameter_counts(void) {
    static const Size sizes[][4] = {
        {512, 8, 24, 76}, {1024, 8, 36, 455}, {1536, 16, 48, 1362}, {3072, 16, 60, 6801}};
    for (int i = 0; i < 4; i++) {
        const Size *size = sizes[i];
        Model m;
        const Config c = {32, 512, size[0], size[1], size[2], 0, OBJECTIVE_AR};
        REQUIRE(!keep_model(&m, model_list(&m, c)));
        CHECK(m.n_params / 1000000 == size[3], "model %d: %lld", i, m.n_params);
        CHECK(i || model_flops(&m) == 180925497344.0, "FLOPs: %.0f", model_flops(&m));
    }
    static const char *const words[] = {"n_embd 12 is not divisible",
                                        "n_px is 257",
                                        "n_vocab is 65536",
                                        "n_vocab is 1,",
                                        "n_head is 1025",
                                        "n_class is 65536"};
    static const Config bad[] = {{5, 9, 12, 5, 3, 4, 0},      {257, 9, 12, 3, 3, 4, 0},
                                 {5, 65536, 12, 3, 3, 4, 0},  {5, 1, 12, 3, 3, 4, 0},
                                 {5, 9, 1025, 1025, 3, 4, 0}, {5, 9, 12, 3, 3, 65536, 0}};
    for (int i = 0; i < 6; i++) check_refused(config_check(&bad[i]), words[i]);
}

static void test_initial_values(void) {
    static const char *const names[] = {"ln_", "wpe", "c_attn", "attn.c_proj", "lm_", "score", ""};
    static const double wanted[] = {1, 0.01, 1.0 / 8, 1.0 / 16, 0, 0, 0.02};
    Model m;
    const Config c = {8, 64, 64, 4, 4, 3, OBJECTIVE_AR};
    REQUIRE(!keep_model(&m, model_init(&m, c)));
    model_randomise(&m, 1);
    for (const Tensor *t = m.tensors; t < m.tensors + m.n_tensors; t++) {
        double squares = 0;
        int k = 0;
        while (!strstr(t->name, names[k])) k++;
        for (Size j = t->offset; j < t->offset + t->rows * t->cols; j++)
            squares += (double)m.params[j] * (double)m.params[j];
        double rms = sqrt(squares / (double)(t->rows * t->cols));
        CHECK(fabs(rms - wanted[k]) <= 0.06 * wanted[k], "%s: %g, not %g", t->name, rms, wanted[k]);
    }
    real *fc = m.params + m.tensors[6].offset, first = *fc; // and c_proj, of the same deviation
    CHECK(first != m.params[m.tensors[7].offset], "two tensors start alike");
    model_randomise(&m, 2);
    CHECK(*fc != first, "two seeds start alike");
}

/* Each position is masked as often as asked for, no mask is empty, and each (seed, index) has its
   own, whatever was drawn before. */
static void test_bert_mask(void) {
    enum { T = 64, N = 4000 };
    uint8_t mask[T], other[T];
    int at[T] = {0}, all = 0;
    for (uint64_t i = 0; i < N; i++) {
        int masked = 0;
        bert_mask(mask, T, 0.15, 1, i);
        for (int t = 0; t < T; t++) {
            CHECK(mask[t] < 2, "mask[%d] is %d", t, mask[t]);
            at[t] += mask[t];
            masked += mask[t];
        }
        CHECK(masked > 0, "mask %d is empty", (int)i);
        all += masked;
        for (uint64_t k = 0; k < 3; k++) { // of another seed, of another image, the same
            bert_mask(other, T, 0.15, k == 0 ? 2 : 1, k == 1 ? i + 1 : i);
            CHECK(!memcmp(mask, other, T) == (k == 2), "mask %d and other %d", (int)i, (int)k);
        }
    }
    double rate = (double)all / (T * N), deviation = sqrt(0.15 * 0.85 / N); // of one position
    CHECK(fabs(rate - 0.15) < 5 * deviation / 8, "%g of the positions are masked", rate);
    for (int t = 0; t < T; t++)
        CHECK(fabs((double)at[t] / N - 0.15) < 5 * deviation, "position %d: %d times", t, at[t]);
    for (uint64_t i = 0; i < 200; i++) { // where most are drawn again
        bert_mask(mask, 2, 0.01, 1, i);
        CHECK(mask[0] + mask[1] > 0, "mask %d of two positions is empty", (int)i);
    }
}

/* ---- palette -------------------------------------------------------------------------------- */

/* Make each centre the mean of its pixels, NaN without pixels; returns the inertia about them. */
static double lloyd(real *centres, Size K, const uint8_t *rgb, Size n, const uint16_t *tokens) {
    double inertia = 0;
    for (Size i = 0; i < 3 * K; i++) { // a channel of a centre
        double sum = 0, squares = 0, count = 0;
        for (Size j = i % 3; j < 3 * n; j += 3) {
            int mine = tokens[j / 3] == i / 3;
            count += mine;
            sum += mine * rgb[j];
            squares += mine * rgb[j] * rgb[j];
        }
        centres[i] = (real)(sum / count / 127.5 - 1);
        inertia += count > 0 ? squares - sum * sum / count : 0;
    }
    return inertia;
}

/* Few points: k-means' optimum is known by trying all partitions; the best of several seeds must be
   it. Each result must be a fixed point of Lloyd's iteration, the last one, of many pixels, too. */
static void test_kmeans(void) {
    enum { N = 9, K = 3, PARTITIONS = 19683, SEEDS = 6, MANY = 600, MANY_K = 25 }; // 3^9
    uint8_t rgb[3 * MANY];
    uint16_t tokens[MANY];
    real palette[3 * MANY_K], means[3 * MANY_K];
    double optimum = INFINITY, least = INFINITY;
    for (int i = 0; i < 3 * MANY; i++)
        rgb[i] = (uint8_t)random_bits(4, 4, (uint64_t)(i % (i < 900 ? 600 : 60)));
    for (int code = 0; code < PARTITIONS; code++) {
        for (int i = 0, digits = code; i < N; i++, digits /= K) tokens[i] = (uint16_t)(digits % K);
        optimum = smaller(optimum, lloyd(means, K, rgb, N, tokens));
    }
    for (uint64_t seed = 0; seed <= SEEDS; seed++) {
        Size n = seed < SEEDS ? N : MANY, k = seed < SEEDS ? K : MANY_K;
        REQUIRE(palette_build(palette, k, rgb, n, seed, PALETTE_ITERATIONS, NULL) == k);
        REQUIRE(!palette_index(tokens, rgb, n, palette, k));
        double inertia = lloyd(means, k, rgb, n, tokens);
        CHECK(inertia > optimum * 0.9999, "%g beats the optimum %g", inertia, optimum);
        CHECK(reals_apart(palette, means, 3 * k) < 1e-5, "a centre is not the mean of its pixels");
        least = smaller(least, inertia);
    }
    CHECK(least < optimum * 1.0001, "the best of %d is %g, the optimum %g", SEEDS, least, optimum);
}

/* Of as many clusters as colours each gets one by a good start: Lloyd's iteration would not part
   two that share a centre. */
static void test_kmeans_start(void) {
    enum { K = 25, N = 24 * K };
    uint8_t rgb[3 * N];
    uint16_t tokens[N];
    real palette[3 * K];
    for (int i = 0; i < N; i++) { // 5 x 5 of red and green, 50 apart
        rgb[3 * i] = (uint8_t)(i % 5 * 50 + i % 7);
        rgb[3 * i + 1] = (uint8_t)(i / 5 % 5 * 50 + i % 8);
        rgb[3 * i + 2] = (uint8_t)(i % 9);
    }
    for (uint64_t seed = 0; seed < 4; seed++) {
        REQUIRE(palette_build(palette, K, rgb, N, seed, PALETTE_ITERATIONS, NULL) == K);
        REQUIRE(!palette_index(tokens, rgb, N, palette, K));
        for (int i = K; i < N; i++)
            CHECK(tokens[i] == tokens[i - K], "pixel %d is of colour %d", i, tokens[i]);
    }
}

static void test_palette_few_colours(void) {
    enum { N = 5, MOST = PALETTE_ITERATIONS };
    static const uint8_t rgb[3 * N] = {0, 0, 0, 255, 255, 255, 201, 100, 7, 0, 0, 0, 255, 255, 255};
    real palette[3 * 8];
    uint8_t back[3 * N];
    uint16_t tokens[N];
    CHECK(palette_build(palette, 8, rgb, 0, 1, MOST, NULL) == -1, "a palette without pixels");
    CHECK(palette_build(palette, 8, rgb, N, 1, MOST, NULL) == 3, "not three colours");
    REQUIRE(!palette_index(tokens, rgb, N, palette, 3));
    palette_colours(back, tokens, N, palette);
    CHECK(!memcmp(back, rgb, sizeof back), "colours do not come back");
}

/* To the nearest colour, by brute force; of equal ones, near each other or not, to the first. */
static void test_quantisation(void) {
    enum { N = 2000, K = 300, COPIES = 100, TWICE = 50 };
    uint16_t tokens[N];
    uint8_t *rgb = zeros(N, 3);
    real *palette = filled(3 * K, 1, 0.5);
    memcpy(palette + 3 * COPIES, palette, 3 * TWICE * sizeof *palette);
    for (int i = 0; i < 3 * N; i++) rgb[i] = (uint8_t)random_bits(1, 1, (uint64_t)i);
    REQUIRE(!palette_index(tokens, rgb, N, palette, K));
    for (int i = 0; i < N; i++) {
        double least = INFINITY, its = 0;
        for (int k = 0; k < K; k++) {
            double square = 0;
            for (int c = 0; c < 3; c++)
                square += pow(rgb[3 * i + c] / 127.5 - 1 - (double)palette[3 * k + c], 2);
            least = smaller(least, square);
            its = k == tokens[i] ? square : its;
        }
        CHECK(its <= least * (1 + 1e-5) + 1e-9, "pixel %d: %g instead of %g", i, its, least);
        CHECK(tokens[i] < COPIES || tokens[i] >= COPIES + TWICE, "pixel %d: %d", i, tokens[i]);
    }
}

/* ---- sampling ------------------------------------------------------------------------------- */

enum { DRAW_PX = 6, DRAW_T = 36, DRAW_K = 11 }; // of whole_drawing

/* Logits one position at a time with cached keys and values, and all at once. */
static void test_cache_is_forward(void) {
    enum { B = 3, T = DRAW_T, K = DRAW_K };
    Whole w;
    double most = 0;
    REQUIRE(!whole_make(&w, whole_drawing, &aims[AIM_AR], B, KEEP_NOTHING));
    Activations *sampler = keep(activations_new(&w.model.config, B, KEEP_PAST));
    model_forward(&w.model, w.acts, &w.batch);
    const real *all = model_logits(&w.model, w.acts, B); // (B, T, K)
    for (Size t = 0; t < T; t++) {
        const real *logits = sampler_step(&w.model, sampler, t, w.batch.tokens, B);
        for (Size b = 0; b < B; b++)
            most = larger(most, reals_apart(logits + b * K, all + (b * T + t) * K, K));
    }
    CHECK(most < (IS_DOUBLE ? 1e-12 : 1e-4), "off by %g", most);
}

/* Draw n whole pictures, B at a time. */
static void draw_pictures(const Model *m, uint16_t *tokens, Size n, Size B, Drawing drawing) {
    Size T = m->config.n_px * m->config.n_px, first = drawing.first;
    Activations *sampler = keep(activations_new(&m->config, B, KEEP_PAST));
    for (Size i = 0; i < n; i += B) {
        drawing.first = first + i;
        sample_positions(m, sampler, tokens + i * T, n - i < B ? n - i : B, 0, T, 0, &drawing);
    }
}

static void test_samples_do_not_depend_on_the_split(void) {
    enum { N = 7, T = DRAW_T, GIVEN = 20 };
    const Drawing five = {5, 0, 1, 0}, six = {6, 0, 1, 0};
    Whole w;
    uint16_t all[N][T], some[N][T];
    REQUIRE(!whole_make(&w, whole_drawing, &aims[AIM_AR], 1, KEEP_NOTHING));
    draw_pictures(&w.model, *all, N, N, five);
    for (int B = 1; B <= 3; B++) {
        threads_set(B);
        draw_pictures(&w.model, *some, N, B, five);
        CHECK(!memcmp(all, some, sizeof all), "%d at a time differ", B);
    }
    draw_pictures(&w.model, *some, 2, 2, (Drawing){5, 3, 1, 0});
    CHECK(!memcmp(all[3], some, 2 * sizeof *all), "the third picture differs");
    Activations *sampler = keep(activations_new(&w.model.config, 3, KEEP_PAST));
    for (Size t = 0; t < T; t += DRAW_PX)
        sample_positions(&w.model, sampler, *some, 3, t, t + DRAW_PX, 0, &five);
    CHECK(!memcmp(all, some, 3 * sizeof *all), "rows of pixels one by one differ");
    sample_positions(&w.model, sampler, *some, 1, 0, T, GIVEN, &six);
    CHECK(!memcmp(all, some, GIVEN * sizeof **all), "given positions changed");
    CHECK(memcmp(all, some, sizeof *all), "another seed completes alike");
    draw_pictures(&w.model, some[0], 1, 1, (Drawing){5, 0, 1, 1});
    draw_pictures(&w.model, some[1], 1, 1, (Drawing){9, 0, 1, 1});
    CHECK(!memcmp(some[0], some[1], sizeof *some), "top-k 1 depends on the seed");
}

/* With the logits of the only position known, the drawn colours must follow them. */
static void test_sampling_frequencies(void) {
    enum { N = 4000, K = DRAW_K };
    Whole w;
    const Config one_position = {1, K, 32, 4, 3, 1, OBJECTIVE_AR};
    uint16_t *tokens = zeros(N, sizeof *tokens);
    REQUIRE(!whole_make(&w, one_position, &aims[AIM_AR], 1, KEEP_NOTHING));
    model_forward(&w.model, w.acts, &w.batch);
    const real *logits = model_logits(&w.model, w.acts, 1);
    for (int top_k = 0; top_k <= 3; top_k += 3) {
        double p[K], sum = 0, apart = 0;
        int count[K] = {0};
        draw_pictures(&w.model, tokens, N, 50, (Drawing){1, 0, 1.5, top_k});
        for (int i = 0; i < N; i++) count[tokens[i]]++;
        for (int k = 0; k < K; k++) {
            int above = 0;
            for (int j = 0; j < K; j++) above += logits[j] > logits[k];
            sum += p[k] = top_k && above >= top_k ? 0 : exp((double)logits[k] / 1.5);
            CHECK(p[k] > 0 || !count[k], "colour %d is not among the first %d", k, top_k);
        }
        for (int k = 0; k < K; k++) apart = larger(apart, fabs((double)count[k] / N - p[k] / sum));
        CHECK(apart < 0.03, "top-k %d: a frequency is off by %g", top_k, apart);
    }
}

/* The trained model in the tree draws what it drew where its vectors were made: each colour behind
   the stored ones, so that nothing builds up. Where rounding differs, logits by 1e-5, hardly one of
   2304 numbers falls beyond a boundary between colours. IGPT_RECORD=1 writes the vectors. */
static void test_trained_model(void) {
    enum { N = 4, MOST_OTHERS = 2 };
    const char *path = "data/fixture/emoji-ar.safetensors";
    const Drawing drawing = {1, 0, 1, 0};
    Model m;
    Safetensors file;
    REQUIRE(!keep_model(&m, model_load(&m, "data/emoji-ar")));
    Size T = m.config.n_px * m.config.n_px, others = 0;
    uint16_t *tokens = zeros(N * T, sizeof *tokens);
    threads_set(1); // quicker for so few pictures
    if (getenv("IGPT_RECORD")) {
        real *x = zeros(N * T, sizeof *x);
        draw_pictures(&m, tokens, N, N, drawing);
        for (Size i = 0; i < N * T; i++) x[i] = tokens[i];
        Stored drawn = {.name = "tokens", .dtype = F32, .n_dim = 2, .shape = {N, T}, .data = x};
        CHECK(!safetensors_write(path, &drawn, 1, NULL), "%s", error_text());
    }
    REQUIRE(!safetensors_open(&file, path));
    const uint16_t *stored = stored_tokens(&file, "tokens", N * T);
    safetensors_close(&file);
    Activations *sampler = keep(activations_new(&m.config, N, KEEP_PAST));
    for (Size t = 0; t < T; t++) {
        sample_positions(&m, sampler, tokens, N, t, t + 1, 0, &drawing);
        for (Size i = t; i < N * T; i += T) {
            others += tokens[i] != stored[i];
            tokens[i] = stored[i];
        }
    }
    CHECK(others <= MOST_OTHERS, "%lld of %lld colours are others", others, N * T);
}

/* ---- probe ---------------------------------------------------------------------------------- */

/* Scales add up; unpooled features, which test_trace holds against PyTorch's, have the pooled as
   their mean and the network's output as their last layer, with other threads, too. */
static void test_features(void) {
    enum { B = FIXTURE_B, T = FIXTURE_T, D = FIXTURE_D, DEPTH = 3, N = B * DEPTH * D };
    for (int kind = AIM_AR; kind <= AIM_BERT; kind++) {
        Whole w;
        REQUIRE(!fixture_open(&w, &aims[kind]));
        real *pooled = zeros(N, sizeof *pooled), *mean = zeros(N, sizeof *mean);
        real *each = zeros(N * T, sizeof *each);
        for (int half = 0; half < 2; half++)
            model_features(&w.model, w.acts, &w.batch, POOL_MEAN, 0.5, pooled);
        const real *output = model_forward(&w.model, w.acts, &w.batch);
        threads_set(threads_get() == 1 ? 3 : 1);
        Activations *other = keep(activations_new(&w.model.config, B, KEEP_NOTHING));
        model_features(&w.model, other, &w.batch, POOL_NONE, 1, each);
        threads_set(0);
        for (int i = 0; i < N * T; i++) mean[i / (T * D) * D + i % D] += each[i] / T;
        double apart = reals_apart(mean, pooled, N);
        CHECK(apart < (IS_DOUBLE ? 1e-14 : 1e-5), "the mean of positions is off by %g", apart);
        for (int b = 0; b < B; b++)
            CHECK(same_bits(output + b * T * D, each + (b * DEPTH + 2) * T * D, T * D),
                  "image %d: not the output", b);
    }
}

/* The sum of a_i (cosh(x_i - c_i) - 1), a_i from 0.01 to 4: steep afar, least at c. */
typedef struct {
    const real *c; // (BOWL_N)
    Size calls;
} Bowl;
enum { BOWL_N = 30 };

static double bowl_height(void *context, const real *x, real *gradient) {
    Bowl *bowl = context;
    double value = 0;
    bowl->calls++;
    for (int i = 0; i < BOWL_N; i++) {
        double off = (double)x[i] - (double)bowl->c[i], a = 0.01 * pow(400, i / (BOWL_N - 1.0));
        gradient[i] = (real)(a * sinh(off));
        value += 2 * a * pow(sinh(off / 2), 2);
    }
    return value;
}

static void test_lbfgs(void) {
    enum { N = BOWL_N, MOST = 1000 };
    const double goal = IS_DOUBLE ? 1e-10 : 1e-5, near = IS_DOUBLE ? 1e-7 : 1e-2;
    real *c = filled(N, 2, 3), *x = filled(N, 3, 1);
    Bowl bowl = {c, 0};
    Size steps = lbfgs(bowl_height, &bowl, x, N, MOST, goal), calls = bowl.calls;
    double off = reals_apart(x, c, N);
    CHECK(steps > 0 && steps < 400 && off < near, "near: %g after %lld steps", off, steps);
    CHECK(calls < 2 * steps + 10, "%lld evaluations for %lld steps", calls, steps);
    Size few = lbfgs(bowl_height, &bowl, filled(N, 3, 1), N, MOST, 0.1);
    CHECK(few < steps / 2, "%lld steps, does not end at the tolerance", few);
    CHECK(lbfgs(bowl_height, &bowl, filled(N, 2, 3), N, MOST, goal) == 0, "leaves the optimum");
    CHECK(lbfgs(bowl_height, &bowl, filled(N, 3, 1), N, 3, goal) == 3, "more than three steps");
    for (int i = 0; i < N; i++) x[i] = c[i] + (real)(i % 2 ? 20 : -15);
    steps = lbfgs(bowl_height, &bowl, x, N, MOST, goal), off = reals_apart(x, c, N);
    CHECK(steps > 0 && steps < 400 && off < near, "afar: %g after %lld steps", off, steps);
}

/* The optimum of a strictly convex problem is where its gradient, written out here, is zero. */
static void test_logistic_optimum(void) {
    enum { N = 80, WIDTH = 3, C = 4, SIZE = C * WIDTH };
    const double l2 = 0.05, tolerance = IS_DOUBLE ? 1e-10 : 1e-6;
    Matrix x = matrix(filled(N * WIDTH, 1, 1), N, WIDTH), p = matrix(filled(N * C, 2, 1), N, C);
    real w[SIZE + C] = {0}, g[SIZE + C] = {0};
    double most = 0;
    uint16_t labels[N];
    int correct = 0;
    for (int i = 0; i < N; i++)
        labels[i] = (uint16_t)(2 * (x.data[i * WIDTH] > 0) + random_bits(1, 2, (uint64_t)i) % 2);
    CHECK(logistic_fit(w, x, labels, C, l2, tolerance) > 0, "%s", error_text());
    matmul_plain(p, x, transposed(matrix(w, C, WIDTH)), 0);
    for (int i = 0; i < N; i++) { // p becomes the gradient of the mean nll by the logits
        real *row = p.data + i * C;
        double sum = 0;
        int likely = 0;
        for (int k = 0; k < C; k++) sum += row[k] = (real)exp((double)(row[k] + w[SIZE + k]));
        for (int k = 0; k < C; k++) likely = row[k] > row[likely] ? k : likely;
        for (int k = 0; k < C; k++) {
            row[k] = (real)(((double)row[k] / sum - (labels[i] == k)) / N);
            g[SIZE + k] += row[k];
        }
        correct += likely == labels[i];
    }
    matmul_plain(matrix(g, C, WIDTH), transposed(p), x, 0);
    for (int i = 0; i < SIZE; i++) g[i] += (real)l2 * w[i];
    for (int i = 0; i < SIZE + C; i++) most = larger(most, fabs((double)g[i]));
    CHECK(most < 10 * tolerance, "the gradient is %g", most);
    double accuracy = logistic_accuracy(w, x, labels, C, NULL);
    CHECK(accuracy == (double)correct / N, "accuracy %g, not %d / %d", accuracy, correct, N);
}

/* Classes far apart are told apart without a mistake; labels that have nothing to do with the
   features are guessed as well as by chance. Columns next to the features must not be read. */
static void test_probe(void) {
    enum { N = 1500, WIDTH = 12, ROW = WIDTH + 2, C = 4 };
    real *x = filled(N * ROW, 1, 1);
    Matrix features = {x + 1, N, WIDTH, ROW, 1};
    uint16_t labels[N];
    uint8_t right[N / 3];
    double n_right = 0;
    Subset parts[N_PARTS];
    Probe probe;
    for (int k = 0; k < N_PARTS; k++) parts[k] = (Subset){0, zeros(N, sizeof(Size))};
    for (int i = 0; i < N; i++) {
        Subset *part = &parts[i % 3 == 0 ? TEST_PART : i % 10 == 1 ? VALIDATION_PART : TRAIN_PART];
        part->index[part->n++] = i;
        labels[i] = (uint16_t)(random_bits(2, 1, (uint64_t)i) % C);
        x[i * ROW] = x[i * ROW + ROW - 1] = (real)NAN;
    }
    REQUIRE(!probe_fit(&probe, features, labels, parts, C, right));
    for (int i = 0; i < N / 3; i++) n_right += right[i];
    CHECK(n_right == round(probe.accuracy[TEST_PART] * (N / 3)), "%g right, accuracy %g", n_right,
          probe.accuracy[TEST_PART]);
    CHECK(fabs(probe.accuracy[TEST_PART] - 1.0 / C) < 0.07, "%g", probe.accuracy[TEST_PART]);
    const Probe before = probe;
    for (int i = 0; i < N; i += 3) x[i * ROW + 3] *= 1000; // the test part tells the others nothing
    REQUIRE(!probe_fit(&probe, features, labels, parts, C, NULL));
    CHECK(probe.l2 == before.l2 && !memcmp(probe.accuracy, before.accuracy, 2 * sizeof(double)),
          "l2 %g, with other test pictures %g", before.l2, probe.l2);
    for (int i = 0; i < N; i += 3) x[i * ROW + 3] /= 1000;
    for (int i = 0; i < N; i++) { // features small beside their mean, one constant in training
        x[i * ROW + 1 + labels[i]] += 12;
        for (int j = 1; j < WIDTH; j++) x[i * ROW + j] = 50 + x[i * ROW + j] / 100;
        x[i * ROW + WIDTH] = (real)(i % 3 == 0 || i % 10 == 1 ? 1000 + i : 1000);
    }
    REQUIRE(!probe_fit(&probe, features, labels, parts, C, NULL));
    for (int k = 0; k < N_PARTS; k++)
        CHECK(probe.accuracy[k] == 1, "separable: accuracy %g of part %d", probe.accuracy[k], k);
    CHECK(probe.l2 == 1, "of equals %g, not the strongest", probe.l2);
    parts[VALIDATION_PART].n = 0;
    check_refused(probe_fit(&probe, features, labels, parts, C, NULL), "validation");
}

/* ---- images --------------------------------------------------------------------------------- */

static uint8_t *image_noise(Size n) { // the same for the same n
    uint8_t *bytes = zeros(n, 1);
    for (Size i = 0; i < n; i++) bytes[i] = (uint8_t)random_bits(8, (uint64_t)n, (uint64_t)i);
    return bytes;
}

static void make_records(const char *path, const Size is[5]) {
    uint8_t *bytes = image_noise(is[0] * is[1]);
    for (Size i = 0; i < is[0] && is[2] >= 0; i++) bytes[i * is[1] + is[2]] = (uint8_t)(is[3] + i);
    write_bytes(path, bytes, is[0] * is[1]);
}

static void make_idx(const char *path, const Size is[5]) {
    Size dims = is[0] & 3, used = 0, n = is[4];
    uint8_t *bytes = zeros(16 + n, 1), *noise = image_noise(n);
    for (Size i = 0; i <= dims; i++)
        for (int shift = 24; shift >= 0; shift -= 8) bytes[used++] = (uint8_t)(is[i] >> shift);
    for (Size i = 0; i < n; i++) bytes[used++] = dims == 1 ? (uint8_t)i : noise[i];
    write_bytes(path, bytes, used);
}

static void make_pictures(const char *path, const Size is[5]) {
    mkdir(path, 0777);
    for (Size i = is[0] - 1; i >= 0; i--) { // the last one first: folders are not in order
        char name[512], text[] = "P5 1 1 255\n?";
        snprintf(name, sizeof name, "%s/%03lld.pgm", path, i);
        text[11] = (char)(is[1] + i);
        write_bytes(name, text, 12);
    }
}

/* The folder must be refused with a sentence (" => sentence"), which leaves the data set zeroed; or
   be read and have these labels ("-": this one has none; "?": none have), before them the values of
   pictures of one pixel, and these classes (" == train 30/0 31/1 | test 40/- | cat,dog."). */
static void check_folder(const char *folder, Size px, const char *outcome) {
    Dataset data, zero;
    int refused = outcome[2] == '>';
    char has[1024], *p = has;
    memset(&data, 1, sizeof data);
    memset(&zero, 0, sizeof zero);
    int result = dataset_read(&data, scratch_path("%s", folder), px);
    CHECK(result == -refused, "%s%s: %s", folder, outcome, error_text());
    if (result && refused) check_holds(error_text(), outcome + 4);
    for (int k = 0; k < 2 && !result; k++) {
        const Images *set = k ? &data.test : &data.train;
        CHECK(set->px == px && !set->tokens, "%s: %lld pixels", folder, set->px);
        p += sprintf(p, k ? "test" : "train");
        for (Size i = 0; i < set->n; i++) {
            p += px == 1 ? sprintf(p, " %d/", set->rgb[3 * i]) : sprintf(p, " ");
            if (!set->labels) p += sprintf(p, "?");
            else p += sprintf(p, set->labels[i] == NO_LABEL ? "-" : "%d", set->labels[i]);
        }
        p += sprintf(p, " | ");
    }
    for (Size c = 0; c < data.n_class && !result; c++)
        p += sprintf(p, "%s%s", c ? "," : "", data.class_names[c]);
    sprintf(p, ".");
    if (!result && !refused) check_holds(has, outcome + 4);
    if (!result) dataset_free(&data);
    CHECK(!memcmp(&data, &zero, sizeof data), "%s: not zeroed", folder);
    dataset_free(&data);
}

/* Tests of the readers are lists of files, which are put below the scratch folder. Where an outcome
   follows, it is that of the folder in which the path begins.

     text PATH ...                          what follows
     records PATH N SIZE AT FIRST           N records of SIZE bytes of noise; byte AT (-1: none) of
                                            record i is FIRST + i
     idx PATH MAGIC COUNT HEIGHT WIDTH N    the header and N bytes of noise; labels are 0, 1, ...
     pictures PATH N FIRST                  a folder of grey pixels: 000.pgm of the value FIRST, ...
     folder PATH                            an empty folder

   What was refused is removed again, unless it is a folder with something in it. */
static void files_make(Size px, const char *const *rows) {
    for (; *rows; rows++) {
        char what[16] = "", name[64] = "", folder[64];
        int used = 0;
        Size is[5] = {0};
        sscanf(*rows, "%15s %63s%n %lli %lli %lli %lli %lli", what, name, &used, &is[0], &is[1],
               &is[2], &is[3], &is[4]);
        const char *outcome = strstr(*rows, " => "), *path = scratch_path("%s", name);
        if (!outcome) outcome = strstr(*rows, " == ");
        Size n = (outcome ? outcome - *rows : (Size)strlen(*rows)) - used - 1; // of the text
        snprintf(folder, sizeof folder, "%.*s", (int)strcspn(name, "/"), name);
        for (const char *end = name; (end = strchr(end, '/')); end++)
            mkdir(scratch_path("%.*s", (int)(end - name), name), 0777);
        if (!strcmp(what, "text")) write_bytes(path, *rows + used + 1, n > 0 ? n : 0);
        else if (!strcmp(what, "records")) make_records(path, is);
        else if (!strcmp(what, "idx")) make_idx(path, is);
        else if (!strcmp(what, "pictures")) make_pictures(path, is);
        else if (!strcmp(what, "folder")) mkdir(path, 0777);
        else CHECK(0, "%s", *rows);
        if (outcome) check_folder(folder, px, outcome);
        if (outcome && outcome[2] == '>') remove(path);
    }
}

/* Exact, and rounded to nearest: let each of the centre's n x n pixels be px x px pieces; then each
   of px x px pixels is the mean of n x n pieces. */
static void test_resize_exact(void) {
    static const Size sides[] = {1, 2, 3, 4, 7, 14, 24, 32, 33};
    enum { SIDES = sizeof sides / sizeof *sides };
    uint8_t out[33 * 33 * 3];
    for (int s = 0; s < SIDES * SIDES * 3; s++) {
        Size n = sides[s / SIDES % SIDES], px = sides[s % SIDES], shape = s / (SIDES * SIDES);
        Size width = n + (shape == 1) * 3, height = n + (shape == 2) * 3; // one off, then two off
        const uint8_t *rgb = image_noise(width * height * 3), *centre = rgb;
        if (shape) centre += 3 * (shape == 1 ? 1 : width);
        REQUIRE(!image_resize(rgb, width, height, out, px));
        for (Size k = 0; k < px * px * 3; k++) {
            Size sum = 0, i = k / 3 / px, j = k / 3 % px;
            for (Size y = i * n; y < (i + 1) * n; y++)
                for (Size x = j * n; x < (j + 1) * n; x++)
                    sum += centre[3 * (y / px * width + x / px) + k % 3];
            Size want = (2 * sum + n * n) / (2 * n * n);
            CHECK(out[k] == want, "%lld to %lld, [%lld]: %d, not %lld", n, px, k, out[k], want);
        }
    }
}

static void test_resize_edges(void) {
    enum { N = 3000 }; // so large that the weights' sum could overflow
    static const Size bad[][3] = {{0, 4, 2},     {4, 0, 2},     {-1, 4, 2},
                                  {32769, 1, 1}, {1, 32769, 1}, {4, 4, 0},
                                  {4, 4, 257},   {4, 4, -3},    {1LL << 62, 1, 1}};
    uint8_t *white = memset(zeros(N * N, 3), 255, N * N * 3), out[7 * 7 * 3];
    CHECK(!image_resize(white, N, N, out, 7) && !memcmp(out, white, sizeof out), "%d", out[0]);
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        CHECK(image_resize(white, bad[k][0], bad[k][1], out, bad[k][2]) == -1, "case %zu", k);
}

/* One set of each format. */
static const char *const record_sets[] = {
    "records c10/data_batch_1.bin 2 3073 0 0",
    "records c10/data_batch_3.bin 3 3073 0 0",
    "records c10/test_batch.bin 1 3073 0 2",
    "text c10/batches.meta.txt \nwarm cat\r\n\n  \ndog\t\nowl"
    " == train 0 1 0 1 2 | test 2 | warm cat,dog,owl.",
    "records c100/train.bin 3 3074 1 97",
    "records c100/test.bin 1 3074 1 5 == train 97 98 99 | test 5 | 0,1,2 ... ,98,99.",
    "records stl/train_X.bin 2 27648 -1 0",
    "records stl/train_y.bin 2 1 0 9", // labels in the file start at 1
    "records stl/test_X.bin 1 27648 -1 0",
    "records stl/test_y.bin 1 1 0 1 == train 8 9 ... | test 0 | 0,1,2,3,4,5,6,7,8,9.",
    "records stl/unlabeled_X.bin 3 27648 -1 0 == train 8 9 - - - | test 0 | ... ,9.",
    "idx idx/train-images-idx3-ubyte 0x803 4 6 4 96", // 4 wide and 6 high
    "idx idx/train-labels-idx1-ubyte 0x801 4 0 0 4",
    "idx idx/t10k-images-idx3-ubyte 0x803 2 6 4 48",
    "idx idx/t10k-labels-idx1-ubyte 0x801 2 0 0 2"
    " == train 0 1 2 3 | test 0 1 | 0,1,2,3,4,5,6,7,8,9.",
    NULL,
};

static void test_records(void) {
    // The first and the number of a file's pictures, where they begin in it, and how far apart its
    // records, their colours, rows and columns are.
    static const struct {
        const char *folder, *file;
        Size is_test, first, n, begin, record, height, width, c, y, x;
    } files[] = {
        {"c10", "data_batch_1.bin", 0, 0, 2, 1, 3073, 32, 32, 1024, 32, 1},
        {"c10", "data_batch_3.bin", 0, 2, 3, 1, 3073, 32, 32, 1024, 32, 1},
        {"c10", "test_batch.bin", 1, 0, 1, 1, 3073, 32, 32, 1024, 32, 1},
        {"c100", "train.bin", 0, 0, 3, 2, 3074, 32, 32, 1024, 32, 1},
        {"stl", "train_X.bin", 0, 0, 2, 0, 27648, 96, 96, 9216, 1, 96},
        {"stl", "unlabeled_X.bin", 0, 2, 3, 0, 27648, 96, 96, 9216, 1, 96},
        {"idx", "train-images-idx3-ubyte", 0, 0, 4, 16, 24, 6, 4, 0, 4, 1},
    };
    static const Size sides[] = {4, 32, 256};
    const real *palette = filled(4 * 3, 4, 0.5);
    files_make(8, record_sets);
    for (size_t k = 0; k < 3 * sizeof files / sizeof *files; k++) {
        size_t f = k / 3;
        Dataset data;
        Size px = sides[k % 3], height = files[f].height, width = files[f].width, length;
        const char *path = scratch_path("%s/%s", files[f].folder, files[f].file);
        const uint8_t *bytes = read_bytes(path, &length);
        size_t size = (size_t)(px * px * 3);
        uint8_t *rgb = zeros(height * width, 3), *want = zeros(1, size);
        REQUIRE(bytes && !dataset_read(&data, scratch_path("%s", files[f].folder), px));
        const Images *set = files[f].is_test ? &data.test : &data.train;
        for (Size i = 0; i < files[f].n; i++) {
            const uint8_t *record = bytes + files[f].begin + i * files[f].record;
            for (Size p = 0; p < height * width * 3; p++)
                rgb[p] = record[p % 3 * files[f].c + p / 3 / width * files[f].y +
                                p / 3 % width * files[f].x];
            const uint8_t *got = set->rgb + (size_t)(files[f].first + i) * size;
            CHECK(!image_resize(rgb, width, height, want, px), "%s", error_text());
            CHECK(!memcmp(got, want, size), "%s, picture %lld", files[f].file, i);
        }
        // Tokens take the pixels' place.
        Size n = data.train.n * px * px;
        uint16_t *tokens = zeros(n, sizeof *tokens);
        CHECK(!palette_index(tokens, data.train.rgb, n, palette, 4), "%s", error_text());
        CHECK(!images_quantise(&data.train, palette, 4), "%s", error_text());
        CHECK(!data.train.rgb && !memcmp(data.train.tokens, tokens, (size_t)n * 2), "other tokens");
        dataset_free(&data);
    }
}

static void test_records_refused(void) {
#define TRAIN "train-images-idx3-ubyte"
#define LABELS "t10k-labels-idx1-ubyte"
#define A32 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    static const char *const bad[] = {
        "folder c10/train", // a class of pictures that none of training has: it does not count
        "text c10/test/cat/a.ppm P6 1 1 255\nabc"
        " == train 0 1 0 1 2 | test 2 | warm cat,dog,owl.",
        "text c100/fine_label_names.txt a\nb\n => train.bin: record 0 ... label 97, not 0 to 1",
        "records stl/train_y.bin 3 1 0 1 => train_y.bin: 3 labels for 2 pictures",
        "records stl/train_y.bin 2 1 0 0 => train_y.bin: record 0 ... label 0, not 1 to 10",
        "records stl/train_y.bin 2 1 0 10 => train_y.bin: record 1 ... label 11",
        "text idx/class_names.txt a\nb\n => train-labels-idx1-ubyte: record 2 ... not 0 to 1",
        "text idx/class_names.txt \n\n => class_names.txt: empty",
        "idx idx/" TRAIN " 0x802 4 6 4 96 => " TRAIN ": wrong magic number 0x00000802",
        "idx idx/" TRAIN " 0x803 5 6 4 120 => train-labels-idx1-ubyte: 4 labels for 5 pictures",
        "idx idx/" TRAIN " 0x803 4 6 4 95 => " TRAIN
        ": 111 bytes, expected a header of 16 and 4 records of 24",
        "idx idx/" TRAIN " 0x803 4 6 4 97 => " TRAIN ": 113 bytes, expected",
        "idx idx/" TRAIN " 0x803 4 0 4 96 => " TRAIN ": ... 4 x 0 pixels",
        "idx idx/" TRAIN " 0x803 4 6 0xffffffff 96 => " TRAIN ": ... 4294967295 x 6 pixels",
        "idx idx/" TRAIN " 0x803 0xffffffff 32768 32768 96 => " TRAIN ": ... 4294967295 records",
        "idx idx/" TRAIN " 0x803 10000000 32768 32768 96 => " TRAIN ": ... 10000000 records",
        "idx idx/" TRAIN " 0x803 0 6 4 0 => train-labels-idx1-ubyte: 4 labels for 0 pictures",
        "text idx/" TRAIN " \1\2\3\4\5 => " TRAIN ": empty or truncated",
        "idx idx/" TRAIN " 0x803 4 6 4 96",
        "idx idx/" LABELS " 0x803 2 0 0 2 => " LABELS ": wrong magic number 0x00000803",
        "folder idx/cat => " LABELS ": No such file",
        "text idx/" LABELS ".gz \37\213 => " LABELS " is packed: ... gunzip -k",
        "text packed/" TRAIN ".gz \37\213 => " TRAIN " is packed: ... gunzip -k",
        "folder bad => bad: no data set found ... data_batch_1.bin (CIFAR-10) ... train.bin (CIFAR-"
        "100) ... train_X.bin (STL-10) ... train-images-idx3-ubyte (IDX) ... *.ppm and *.pgm",
        "records bad/data_batch_1.bin 3 3073 0 0",
        "folder bad/cat => test_batch.bin: No such file",
        "folder bad/test_batch.bin => test_batch.bin: it is a folder",
        "text bad/test_batch.bin => test_batch.bin: empty",
        "records bad/test_batch.bin 1 3072 0 0 => test_batch.bin: 3072 bytes, expected ... "
        "1 records of 3073",
        "records bad/test_batch.bin 2 3073 0 9"
        " => test_batch.bin: record 1 (counted from 0) ... label 10, not 0 to 9",
        "records bad/test_batch.bin 2 3073 0 0",
        "records bad/data_batch_5.bin 1 3074 0 0 => data_batch_5.bin: ... 2 records of 3073",
        "text bad/batches.meta.txt => batches.meta.txt: empty",
        "text bad/batches.meta.txt a\na\n => batches.meta.txt: class a stands there twice",
        "text bad/batches.meta.txt a\nb\n => data_batch_1.bin: record 2 ... label 2, not 0 to 1",
        "folder bad/batches.meta.txt => batches.meta.txt: it is a folder",
        "folder bad/cat == train 0 1 2 | test 0 1 |", // a sub-folder without pictures
        "text bad/cat/a.ppm P6 1 1 255\nabc => bad: ... PPM ... CIFAR-10",
        "text c10/batches.meta.txt a\nb\nK\xf6ln\n" // no UTF-8: Latin-1
        " == train 0 1 0 1 2 | test 2 | a,b,K\xc3\xb6ln.",
        "text c10/batches.meta.txt " A32 A32 A32 A32 "a\nb\nc\n" // too long: cut to 127 bytes
        " == train 0 1 0 1 2 | test 2 | " A32 A32 A32 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,b,c.",
        "records bad/test.bin 1 3074 1 0 => bad: ... CIFAR-10 ... CIFAR-100",
        NULL,
    };
    files_make(4, record_sets);
    files_make(4, bad);
    check_folder("nowhere", 8, " => nowhere: no such folder");
    check_folder("idx", 0, " => n_px 0 ... 1 to 256");
    check_folder("idx", 257, " => n_px 257 ... 1 to 256");
#undef TRAIN
#undef LABELS
#undef A32
}

static void test_image_read(void) {
    // clang-format off
    static const struct {
        const char *text;
        Size n, px; // n: of its bytes, where a zero is among them
        const char *rgb;
    } good[] = {
        {"P6\n2 2\n255\nabcdefghijkl", 0, 2, "abcdefghijkl"},
        {"P6 2 2 255 abcdefghijkl", 0, 2, "abcdefghijkl"},
        {"P6\r\n2\t2\v255\fabcdefghijkl", 0, 2, "abcdefghijkl"},
        {"P6# by hand\n# 3 3\n 2 # width\n#\n2#height\n255\nabcdefghijkl", 0, 2, "abcdefghijkl"},
        {"P6 2 2 255#the line's end is the white space\nabcdefghijkl", 0, 2, "abcdefghijkl"},
        {"P6 02 2 0255\nabcdefghijklP6 1 1 255\nabc", 0, 2, "abcdefghijkl"},
        {"P6 1 1 255\n#12", 0, 1, "#12"}, // a pixel
        {"P5 3 2 255\n\1\2\3\4\5\6", 0, 2, "\1\1\1\2\2\2\4\4\4\5\5\5"},
        {"P5 2 2 3\n\0\1\2\3", 13, 2, "\0\0\0UUU\252\252\252\377\377\377"}, // 0 85 170 255
        {"P5 1 1 199\n\307", 0, 1, "\377\377\377"}, {"P5 1 1 1\n\1", 0, 1, "\377\377\377"},
        {"P5 1 1 256\n\1\0", 13, 1, "\377\377\377"},
        {"P6 1 1 65535\n\377\377\200\0\1\1", 19, 1, "\377\200\1"},
    };
    // Texts that are refused, after the words that say why.
    static const struct {
        const char *says, *texts[8];
    } bad[] = {
        {"wrong magic number", {"", "P", "P3 1 1 255 1 2 3", "P61 1 255 abc", "\211PNG\r\n", "P6"}},
        {"its header", {"P6 ", "P6 1x1 255\nabc", "P6 1 -1 255 abc", "P6 1 1", "P6 1 1 255"}},
        {"its header", {"P6 1 1 255abc", "P6 1 1 # 255 abc", "P6 0 1 255 abc"}},
        {"its header", {"P6 32769 1 255 abc"}},
        {"its header", {"P6 1 99999999999999999999999999 255 abc", "P6 1 1 0 abc"}},
        {"maxval to 65535", {"P6 1 1 65536 abcdef"}},
        {"truncated, 2 bytes of pixels instead of 3", {"P6 1 1 255\nab"}},
        {"truncated, 5 bytes of pixels instead of 6", {"P6 1 1 256\nabcde"}},
        {"truncated", {"P6 32768 32768 65535\nabc"}}, {"above maxval", {"P5 1 1 100\ne"}},
    };
    // clang-format on
    const char *path = scratch_path("one.ppm");
    uint8_t rgb[12];
    for (size_t k = 0; k < sizeof good / sizeof *good; k++) {
        Size px = good[k].px, n = good[k].n ? good[k].n : (Size)strlen(good[k].text);
        write_bytes(path, good[k].text, n);
        CHECK(!image_read(path, rgb, px), "%s", error_text());
        CHECK(!memcmp(rgb, good[k].rgb, (size_t)(3 * px * px)), "%s: other pixels", good[k].text);
    }
    check_refused(image_read(path, rgb, 257), "257");
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        for (const char *const *text = bad[k].texts; *text; text++) {
            write_bytes(path, *text, (Size)strlen(*text));
            CHECK(image_read(path, rgb, 1) == -1, "\"%s\" was read", *text);
            check_holds(error_text(), "one.ppm: ");
            check_holds(error_text(), bad[k].says);
        }
    remove(path);
    check_refused(image_read(path, rgb, 1), path);
    check_refused(image_read(scratch, rgb, 1), "folder");
}

/* Folders of pictures: classes in strcmp order; what makes no data set, and what would help. */
static void test_folders(void) {
    static const char *const files[] = {
        "folder tree/val", // neither train nor test: not looked at
        "pictures tree/train/owl 2 30",
        "pictures tree/train/Zebra 1 40",
        "pictures tree/train/ant 3 50",
        "pictures tree/test/owl 1 60",
        "pictures tree/test/ant 1 70",
        "pictures tree/train/.hidden 1 80",
        "text tree/train/ant/.x.ppm not a picture",
        "text tree/train/ant/notes.txt not a picture",
        "text tree/train/out/samples.png igpt's own: no class"
        " == train 40/0 50/1 51/1 52/1 30/2 31/2 | test 70/1 60/2 | Zebra,ant,owl.",
        "text tree/train/top.ppm P6 1 1 255\nabc => tree/train: ... beside the classes",
        "folder tree/train/cat => train/cat: no picture",
        "pictures tree/test/emu 1 10 => test/emu ... no training pictures",
        "folder tree/train/emu => train/emu: no picture",
        "text tree/train/emu/1.jpg ? => train/emu/1.jpg ... in that folder: mogrify ... ./*.jpg",
        "pictures half/train/owl 2 30 => half/test: No such file",
        "folder half/test => half ... 0 for testing",
        "pictures alone 1 0 => alone: pictures: 1 for training, 0 for testing",
        // Without train/ and test/ 15 % of each class are drawn for testing, always the same ones:
        // of 3 still one, but not the only one.
        "pictures own/a 14 0",
        "pictures own/b 3 20",
        "pictures own/c 1 30 == train 0/0 1/0 2/0 3/0 5/0 6/0 7/0 8/0 9/0 10/0 12/0 13/0 20/1 22/1 "
        "30/2 | test 4/0 11/0 21/1 | a,b,c.",
        "pictures ten 10 0 == train 0/- 1/- 2/- 3/- 4/- 5/- 6/- 7/- | test 8/- 9/- | .",
        "text flat/out/config.json ?",
        "text flat/out/loss.ppm ?",
        "pictures flat 6 10 == train 10/- 11/- 12/- 14/- 15/- | test 13/- | .", // no classes
        // Pictures that cannot be read; where one can be read, others beside it are no matter.
        "text foreign/b.JPG ? => foreign/b.JPG ... mogrify ... ./*.JPG",
        "text foreign/c.jpeg ? => foreign/c.jpeg ... mogrify ... ./*.jpeg",
        "text foreign/d.png ? => foreign/d.png ... mogrify ... ./*.png",
        "text foreign/d.png ?",
        "pictures foreign 2 0 == train ... | test ... | ",
        "text classes/cat/1.png ? => cat/1.png ... mogrify ... ./*.png",
        "pictures classes/dog 2 0 => classes/cat: no picture",
        "text classes/cat/1.png ? => cat/1.png ... mogrify ... ./*.png",
        "text classes/cat/notes.txt ? => classes/cat: no picture",
#if !defined _WIN32 && !defined __APPLE__ // where a name can be any bytes: in Latin-1, in UTF-8
        "pictures same/caf\xe9 2 0",
        "pictures same/caf\xc3\xa9 2 9 => another folder is of class",
#endif
        // Where no sub-folder has pictures, none is a class: there is no data set at all.
        "folder none/docs => none: no data set found ... data_batch_1.bin (CIFAR-10)",
        NULL,
    };
    files_make(1, files);
}

/* Beyond the picture's edges at 0 and `last`, pixel x comes from -x or 2 * last - x. */
static void test_augment(void) {
    uint16_t in[25], out[25];
    for (int i = 0; i < 25; i++) in[i] = (uint16_t)(500 + i);
    for (int k = 0; k < 2 * 5 * 5 * 81; k++) {
        int flip = k % 2, px = k / 2 % 5 + 1, pad = k / 10 % 5, dy = k / 50 % 9, dx = k / 450;
        if (pad >= px || dy > 2 * pad || dx > 2 * pad) continue;
        image_augment(in, out, px, flip, pad, dy, dx);
        for (int i = 0; i < px * px; i++) {
            int y = abs(i / px + dy - pad), x = abs(i % px + dx - pad), last = px - 1;
            if (y > last) y = 2 * last - y;
            if (x > last) x = 2 * last - x;
            int want = in[y * px + (flip ? last - x : x)];
            CHECK(out[i] == want, "%d px, flip %d, pad %d at (%d, %d): %d instead of %d", px, flip,
                  pad, dy, dx, out[i], want);
        }
    }
}

/* 180 pictures of each of three classes, and 60 without; 7 of each class in a low-data draw. */
static void test_labels_split(void) {
    enum { N = 600, C = 3, EACH = 7, RUNS = 5 };
    static const struct { // neighbours differ in one
        Size per_class, draw;
        uint64_t seed;
    } runs[RUNS] = {{0, 0, 1}, {0, 0, 2}, {EACH, 0, 2}, {EACH, 0, 1}, {EACH, 1, 1}};
    uint16_t labels[N];
    uint8_t *part = NULL; // of each picture, 1: to train, 2: held out
    Subset list[3];
    for (int i = 0; i < N; i++) labels[i] = (uint16_t)(i % 10 == 9 ? NO_LABEL : i % C);
    const Images set = {.n = N, .labels = labels};
    for (int r = 0; r < RUNS; r++) {
        Size each = runs[r].per_class, count[3][C] = {{0}}, alike = 0;
        uint8_t *before = part;
        REQUIRE(!labels_split(&set, C, each, runs[r].seed, runs[r].draw, &list[1], &list[2]));
        part = zeros(N, 1);
        for (int p = 1; p <= 2; p++) {
            const Size *index = keep(list[p].index);
            for (Size k = 0; k < list[p].n; k++) {
                REQUIRE(index[k] >= 0 && index[k] < N && (k == 0 || index[k] > index[k - 1]));
                REQUIRE(labels[index[k]] < C && !part[index[k]]);
                part[index[k]] = (uint8_t)p;
                count[p][labels[index[k]]]++;
            }
        }
        for (int c = 0; c < C; c++)
            CHECK(count[1][c] == (each ? each : 162) && count[2][c] == 18,
                  "class %d: %lld to train, %lld held out", c, count[1][c], count[2][c]);
        for (int i = 0; i < N && before; i++) {
            CHECK((part[i] == 2) == (before[i] == 2), "not always the same held out");
            alike += part[i] == 1 && before[i] == 1;
        }
        CHECK(r < 3 || alike < C * EACH / 2, "two draws share %lld labels", alike);
    }
    check_refused(labels_split(&set, C, 163, 1, 0, &list[1], &list[2]),
                  "class 0 has 162 labels ... not 163");
    CHECK(!list[1].index && !list[2].index && !list[1].n && !list[2].n, "something to free");
}

/* ---- checkpoints: JSON and safetensors ------------------------------------------------------ */

static int json_bad(const char *text) { return json_check(text, (Size)strlen(text), "test.json"); }

/* The text with " for '. */
static char *quoted(const char *text) {
    char *copy = strcpy(zeros((Size)strlen(text) + 1, 1), text);
    for (char *p = copy; (p = strchr(p, '\''));) *p = '"';
    return copy;
}

static void test_json_grammar(void) {
    // clang-format off
    static const char *const good[] = {
        "0", " \t\r\n[ ] ", "{}", "null", "true", "false", "\"\"", "-0", "1.5e-3", "[1,2,3]",
        "1E+2", "{\"a\":{\"b\":[{}]},\"c\":null}", "[\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\"]",
        "\"\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80\"",
    };
    // Texts that are refused; the last ones, after the place that is named.
    static const struct {
        const char *says, *texts[18];
    } bad[] = {
        {"", {"", " ", "[1,]", "[,1]", "nul", "True", "NaN", "[Infinity]", "-Infinity", "// x\n1",
         "\xef\xbb\xbf{}", "\v1", "-", "+1", ".5"}},
        {"", {"[1 2]", "[1", "[1}", "{\"a\":1]", "{\"a\" 1}", "{\"a\"", "{a:1}", "{\"a\":1,}",
         "{1:2}", "{'a':1}", "{"}},
        {"", {"1 2", "{}x", "truex", "[1] // x", "01", "0x10", "1.", "1.e1", "1e", "1e+", "1e400",
         "-1e400"}},
        {"", {"\"a", "\"\n\"", "\"\t\"", "\"\\x\"", "\"\\", "\"\\u12\"", "\"\\u00g0\"",
         "\"\\u+123\"", "\"\\u\x10\x11\x12\x13\"", "\"\\u0000\""}},
        {"", {"\"\\ud800\"", "\"\\udc00\"", "\"\\ud800x\"", "\"\\udc00\\udc00\"",
         "\"\\ud800\\n\"", "\"\\ud800\\ud800\"", "\"\\ud800\\u0041\""}},
        {"", {"\"\x80\"", "\"\xc3\"", "\"\xc0\x80\"", "\"\xe0\x80\x80\"", "\"\xf0\x80\x80\x80\"",
         "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xff\"", "\"\xf8\x88\x80\x80\x80\"",
         "\"\xe2\x82"}},
        {"byte 3: ", {"[1 2]", "\"ab\x80\""}},
        {"byte 18: ", {"{\n  \"a\": 1,\n  \"b\" 2}"}},
    };
    // clang-format on
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        CHECK(!json_bad(good[i]), "refused %s: %s", good[i], error_text());
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (const char *const *text = bad[i].texts; *text; text++) {
            CHECK(json_bad(*text), "accepted %s", *text);
            CHECK(strstr(error_text(), "test.json: byte ") && strstr(error_text(), bad[i].says),
                  "%s: \"%s\" does not say \"%s\"", *text, error_text(), bad[i].says);
        }
    CHECK(json_check("\"a\0b\"", 5, "zero"), "accepted a zero byte in a string");
    CHECK(json_check("1\0", 2, "zero"), "accepted a zero byte behind the text");
    // Every text cut short is refused; nothing beyond its end is read (a sanitizer would tell).
    const char *text =
        quoted("{'a':[1.5e+1,true,null,'\\ud83d\\ude00\\n\xe2\x82\xac'],'b':{'c':false}}");
    for (Size n = 0; n < (Size)strlen(text); n++)
        CHECK(json_check(memcpy(zeros(n + 1, 1), text, (size_t)n), n, "cut"), "accepted %lld", n);
    CHECK(!json_bad(text), "%s", error_text());
}

static void test_json_values(void) {
    // clang-format off
    static const struct { // the number at a key of a text, or, without a key, the text
        const char *text, *key;
        double value;
    } numbers[] = {
        {"{'n':-12.5e1}", "n", -125}, {" { 'no' : 0 , 'yes' : true } ", "yes", 1},
        {"{'a':false}", "a", 0}, {"{'\\u006bey':7}", "key", 7}, {"{'a':null}", "a", NAN},
        {"{'a':1,'b':2,'a':3}", "a", 3}, {"{'a':1,'in':{'a':2},'\\u0061':3}", "a", 3}, // the last
        {"{'a':{'b':4},'b':5}", "b", 5}, {"{'a':{'b':4}}", "b", NAN}, {"['a']", "a", NAN},
        {"'1'", NULL, NAN}, {"[1]", NULL, NAN}, {"{}", NULL, NAN}, {"0.1", NULL, 0.1},
        {"1e-400", NULL, 0}, {"-0", NULL, 0}, {"9007199254740993", NULL, 0x1p53},
        {"1.7976931348623157e308", NULL, 0x1.fffffffffffffp1023}, {"4.9e-324", NULL, 0x1p-1074},
        {"100000000000000000000000000000000000000000000000000e-50", NULL, 1},
    };
    // clang-format on
    static const char wanted[] =
        "\"\\/\b\f\n\r\tA\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xf4\x8f\xbf\xbf";
    const char *text =
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\u20AC\\ud83d\\ude00\\uDBFF\\uDFFF\"";
    char out[64];
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const char *value = quoted(numbers[i].text), *key = numbers[i].key;
        REQUIRE(!json_bad(value));
        double x = json_number(key ? json_get(value, key) : value);
        CHECK(x == numbers[i].value || isnan(numbers[i].value), "%s: %g", value, x);
        CHECK(isnan(x) == isnan(numbers[i].value), "%s: %g", value, x);
    }
    CHECK(!json_get(NULL, "n") && isnan(json_number(NULL)) && !json_first(NULL), "in nothing");
    REQUIRE(!json_bad(text) && !json_text(text, out, sizeof wanted));
    CHECK(!strcmp(out, wanted), "text is %s", out);
    for (Size room = 0; room < (Size)sizeof wanted; room++)
        CHECK(json_text(text, out, room) == -1, "%zu bytes fit into %lld", sizeof wanted, room);
    CHECK(json_text("[1]", out, 64) == -1 && json_text(NULL, out, 64) == -1, "no string");

    const char *list = quoted(" [ 1 , [2,3] ,{ },{'a' : {'b' : 5} , 'c':6}] ");
    const char *first = json_first(list), *second = json_next(first), *third = json_next(second);
    const char *fourth = json_next(third), *a = json_first(fourth), *c = json_next(a);
    CHECK(json_number(first) == 1 && *third == '{' && !json_first(third), "[0] and [2]");
    CHECK(json_number(json_next(json_first(second))) == 3, "[1][1]");
    CHECK(!json_next(json_next(json_first(second))) && !json_next(fourth), "an end is missing");
    CHECK(!json_text(a, out, 64) && !strcmp(out, "a") && *json_value(a) == '{', "a");
    CHECK(json_number(json_value(c)) == 6 && !json_next(c), "c");
}

static void test_json_limits(void) {
    enum { KEYS = 200000 };
    const char *path = scratch_path("limits.json"), *absent = scratch_path("absent.json");
    char text[512], *keys = zeros(KEYS * 24, 1), *p = keys;
    for (int depth = 63; depth <= 66; depth++) {
        for (int i = 0; i < depth; i++) text[i] = '[', text[depth + i] = ']';
        text[2 * depth] = 0;
        CHECK(!json_bad(text) == (depth <= 64), "depth %d", depth);
    }
    check_holds(error_text(), "byte 64: ");
    // A quadratic check, or steps that start from the front, would take minutes.
    for (int i = 0; i < KEYS; i++) p += sprintf(p, "%c\"key%d\":%d", i ? ',' : '{', i, i);
    strcpy(p, "}\n");
    write_bytes(path, keys, p + 2 - keys);
    const char *json = json_read(path, p + 2 - keys);
    REQUIRE(json);
    CHECK(json_number(json_get(keep((void *)json), "key199999")) == 199999, "the last key");
    Size n = 0;
    for (const char *key = json_first(json); key; key = json_next(key)) n++;
    CHECK(n == KEYS, "%lld keys", n);
    check_refused(!json_read(path, p + 1 - keys), "limits.json: 3577782 bytes ... at most 3577781");
    write_bytes(path, "{", 1);
    check_refused(!json_read(path, 100), "limits.json: byte 1");
    check_refused(!json_read(absent, 100), absent);
    check_refused(!json_read("no\xc2\x9bsuch\x7f", 100), "no??such?");
    check_refused(!json_read(scratch, 100), "folder");
}

/* Write a safetensors file by hand: a header, in which ' stands for ", and n bytes of data. */
static const char *hand_made(const char *header, const void *data, Size n) {
    Size length = (Size)strlen(header);
    const char *path = scratch_path("hand.safetensors");
    char *bytes = zeros(8 + length + n, 1);
    for (int i = 0; i < 8; i++) bytes[i] = (char)(length >> 8 * i);
    memcpy(bytes + 8, quoted(header), (size_t)length);
    memcpy(bytes + 8 + length, data, (size_t)n);
    write_bytes(path, bytes, 8 + length + n);
    return path;
}

/* One with a single tensor, "x". */
static const char *hand_made_x(const char *dtype, const char *shape, const char *offsets,
                               const void *data, Size n) {
    char header[256];
    snprintf(header, sizeof header, "{'x':{'dtype':'%s','shape':%s,'data_offsets':%s}}", dtype,
             shape, offsets);
    return hand_made(header, data, n);
}

static void check_not_opened(const char *path, const char *why) {
    Safetensors s;
    check_refused(safetensors_open(&s, path), path);
    check_holds(error_text(), why);
    safetensors_close(&s);
}

static void test_safetensors_refused(void) {
#define A "'a':{'dtype':'I8','shape':[4],'data_offsets':[0,4]}"
    // clang-format off
    // Shape and offsets of a single F32 tensor with four bytes behind the header; what is said.
    static const char *const entries[][3] = {
        {"1", "[0,4]", "tensor x: expected"}, {"[-1]", "[0,4]", "x: ... a shape"},
        {"[1,1.5]", "[0,4]", "a shape"}, {"[null]", "[0,4]", "a shape"},
        {"[9007199254740992]", "[0,4]", "a shape"},
        {"[1,1,1,1,1,1,1,1,1]", "[0,4]", "at most 8"},
        {"[4294967296,2147483648]", "[0,4]", "x:"}, {"[4294967296,4294967296]", "[0,0]", "x:"},
        {"[4294967296,1073741824]", "[0,0]", "x:"}, {"[2]", "[0,4]", "x:"},
        {"[]", "4", "two data_offsets"}, {"[]", "[4]", "two data_offsets"},
        {"[]", "[0,4,8]", "two data_offsets"}, {"[]", "['0',4]", "two data_offsets"},
        {"[]", "[-4,0]", "two data_offsets"}, {"[]", "[0.5,4.5]", "two data_offsets"},
        {"[]", "[4,0]", "two data_offsets"}, {"[2]", "[0,8]", "the file ends there"},
        {"[1]", "[4,8]", "no tensor"},
    };
    // Whole headers, and how many bytes are behind them.
    static const struct {
        const char *bytes;
        Size n;
        const char *why;
    } headers[] = {
        {"[]", 0, "in braces"}, {" {}", 0, "in braces"}, {"{'a':1", 0, "byte 6"},
        {"{}\n{", 0, "byte 3"}, {"{}", 1, "no tensor"}, {"{'a':1}", 0, "tensor a: expected"},
        {"{'__metadata__':[]}", 0, "__metadata__"},
        {"{'__metadata__':{'step':1}}", 0, "__metadata__"},
        {"{'a':{'shape':[],'data_offsets':[0,4]}}", 4, "tensor a: expected a dtype"},
        {"{'a':{'dtype':1,'shape':[],'data_offsets':[0,4]}}", 4, "tensor a: expected a dtype"},
        {"{'a':{'dtype':'F32','data_offsets':[0,4]}}", 4, "tensor a: ... a shape"},
        {"{'a':{'dtype':'F32','shape':[]}}", 4, "tensor a: ... two data_offsets"},
        {"{'a':{'dtype':'F4','shape':[],'data_offsets':[0,1e16]}}", 4, "two data_offsets"},
        {"{'a':{'dtype':'U16','shape':[2],'data_offsets':[0,2]}}", 2, "tensor a: expected"},
        {"{'a':{'dtype':'BOOL','shape':[2],'data_offsets':[0,4]}}", 4, "tensor a: expected"},
        {"{'a':{'dtype':'F32','shape':[1],'data_offsets':[0,4]}}", 5, "no tensor"},
        {"{" A ",'b':{'dtype':'I8','shape':[4],'data_offsets':[2,6]}}", 6, "two tensors"},
        {"{" A ",'b':{'dtype':'I8','shape':[4],'data_offsets':[4,8]}}", 4, "the file ends there"},
        {"{" A "}", 0, "the file ends there"}, // as a kill leaves it that came behind the header
        {"{'b':{'dtype':'I8','shape':[4],'data_offsets':[0,4]}," A "}", 4, "two tensors"},
        {"{'b':{'dtype':'I8','shape':[0],'data_offsets':[2,2]}," A "}", 4, "two tensors"},
        {"{'b':{'dtype':'I8','shape':[4],'data_offsets':[6,10]}," A "}", 10, "no tensor"},
        {"{" A ",'a':{'dtype':'F32','shape':[0],'data_offsets':[4,4]}}", 4, "a stands there twice"},
    }, files[] = { // whole files, without a header
        {"\0\0\0\0\0\0\0", 7, "no safetensors file"},
        {"\0\0\0\0\0\0\0\0\0\0\0\0", 12, "in braces"},
        {"\2\0\0\0\0\0\0\0{", 9, "as long as the file says"},
        {"\377\377\377\377\377\377\377\377{", 9, "as long as the file says"},
    };
    // clang-format on
    static const uint8_t data[16];
    const char *path = scratch_path("short.safetensors");
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++)
        check_not_opened(hand_made_x("F32", entries[i][0], entries[i][1], data, 4), entries[i][2]);
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++)
        check_not_opened(hand_made(headers[i].bytes, data, headers[i].n), headers[i].why);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        write_bytes(path, files[i].bytes, files[i].n);
        check_not_opened(path, files[i].why);
    }
    check_not_opened(scratch_path("absent.safetensors"), "cannot open");
    check_not_opened(scratch, "folder");
    char crowd[48 * 50 + 2] = "{"; // with as many entries as its length allows
    for (int n = 1; n <= 50; n++) {
        strcat(crowd, "'':{'dtype':'','shape':[],'data_offsets':[0,0]}}");
        if (n > 1) check_not_opened(hand_made(crowd, data, 0), "tensor  stands there twice");
        crowd[strlen(crowd) - 1] = ',';
    }
    char *large = memset(zeros(16777218, 1), '{', 16777217); // a byte more than is read of a header
    check_not_opened(hand_made(large, "", 0), "at most 16777216 bytes");
#undef A
}

/* What is unusual but allowed: padding, fields to ignore, an odd order, no elements, dtypes of
   tomorrow. */
static void test_safetensors_allowed(void) {
    static const char *const header =
        "{'b2':{'dtype':'F32','shape':[],'data_offsets':[7,11]},"
        "'b':{'dtype':'F32','shape':[],'data_offsets':[3,7],'more':{}},"
        "'none':{'dtype':'F64','shape':[5,0],'data_offsets':[3,3]},'__metadata__':{},"
        "'a':{'data_offsets':[0,3],'shape':[9],'dtype':'F3'}}  \n ";
    Safetensors s;
    Stored a, b, none, no;
    real x[2] = {0, 7};
    char text[8];
    REQUIRE(!safetensors_open(&s, hand_made(header, "\1\2\3\0\0\x80\x3f\0\0\0\x40", 11)));
    REQUIRE(safetensors_find(&s, "a", &a) && safetensors_find(&s, "b", &b));
    REQUIRE(safetensors_find(&s, "none", &none));
    CHECK(b.n_dim == 0 && b.count == 1 && b.end - b.begin == 4 && !strcmp(b.name, "b"), "b");
    CHECK(!safetensors_read(&s, &b, x, NULL) && x[0] == 1 && x[1] == 7, "b is %g", (double)x[0]);
    CHECK(none.n_dim == 2 && none.shape[0] == 5 && none.count == 0, "none");
    CHECK(!safetensors_read(&s, &none, x, NULL) && x[0] == 1, "%s", error_text());
    check_refused(safetensors_read(&s, &a, x, NULL), "hand.safetensors: tensor a: dtype unknown,");
    CHECK(!safetensors_find(&s, "c", &no) && !safetensors_find(&s, "__metadata__", &no), "c");
    CHECK(safetensors_metadata(&s, "format", text, 8) == -1, "metadata out of nothing");
    safetensors_close(&s);
    REQUIRE(!safetensors_open(&s, hand_made("{}", "", 0)));
    safetensors_close(&s);
}

/* Read tensor "x" of a file into x and, where it is not NULL, into wide. */
static int read_x(const char *path, real *x, double *wide) {
    Safetensors s;
    Stored t;
    if (safetensors_open(&s, path)) return -1;
    int bad = !safetensors_find(&s, "x", &t) || safetensors_read(&s, &t, x, NULL) ||
              (wide && safetensors_read(&s, &t, NULL, wide));
    safetensors_close(&s);
    return bad ? -1 : 0;
}

/* Values from bytes written down by hand, for every dtype that is read; the others are not. */
static void test_safetensors_dtypes(void) {
    // clang-format off
    const struct {
        const char *dtype, *shape, *offsets, *data;
        double values[8];
    } cases[] = {
        {"F64", "[3]", "[0,24]", "\0\0\0\0\0\0\xf8\x3f\0\0\0\0\0\0\0\x80\0\0\0\0\0\0\xf0\x7f",
         {1.5, -0.0, INFINITY}},
        {"F32", "[3]", "[0,12]", "\0\0\xc0\xbf\1\0\0\0\xff\xff\x7f\x7f",
         {-1.5, 0x1p-149, 0x1.fffffep127}},
        {"F16", "[8]", "[0,16]", "\0\x3c\1\0\xff\3\0\4\xff\x7b\0\xfc\0\x80\1\x80",
         {1, 0x1p-24, 1023 * 0x1p-24, 0x1p-14, 65504, -INFINITY, -0.0, -0x1p-24}},
        {"F16", "[1]", "[0,2]", "\1\x7c", {NAN}},
        {"BF16", "[5]", "[0,10]", "\x80\x3f\x49\xc0\x80\x7f\1\0\xc0\x7f",
         {1, -3.140625, INFINITY, 0x1p-133, NAN}},
        {"I64", "[2]", "[0,16]", "\xfe\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\1\0\0\0", {-2, 0x1p32}},
    };
    static const char *const unread[][2] = {
        {"U64", "[0,8]"}, {"I32", "[0,4]"}, {"U32", "[0,4]"}, {"I16", "[0,2]"}, {"U16", "[0,2]"},
        {"I8", "[0,1]"}, {"U8", "[0,1]"}, {"BOOL", "[0,1]"}, {"F8_E4M3", "[0,1]"},
        {"C64", "[0,8]"}, {"f32", "[0,4]"}, {"", "[0,4]"},
    };
    // clang-format on
    real x[8];
    double wide[8];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *shape = cases[i].shape, *offsets = cases[i].offsets; // "[0,n]"
        const double *want = cases[i].values;
        Size n = atoi(offsets + 3);
        REQUIRE(!read_x(hand_made_x(cases[i].dtype, shape, offsets, cases[i].data, n), x, wide));
        for (int j = 0; j < atoi(shape + 1); j++)
            CHECK(isnan(want[j]) ? isnan(x[j]) && isnan(wide[j])
                                 : (double)x[j] == want[j] && !memcmp(&wide[j], &want[j], 8),
                  "%s[%d] is %g and %g", cases[i].dtype, j, (double)x[j], wide[j]);
    }
    for (size_t i = 0; i < sizeof unread / sizeof *unread; i++) {
        const char *dtype = unread[i][0], *span = unread[i][1];
        x[0] = 7;
        int bad = read_x(hand_made_x(dtype, "[1]", span, zeros(8, 1), atoi(span + 3)), x, wide);
        CHECK(bad && x[0] == 7, "%s was read", dtype);
        check_holds(error_text(), "hand.safetensors: tensor x: dtype ");
        check_holds(error_text(), i < 9 ? dtype : "unknown");
    }
}

/* Large enough for several chunks, odd enough for the last one to be partial; F16 rounds to the
   nearest, ties to even. */
static void test_safetensors_round_trip(void) {
    // clang-format off
    static const double halves[][2] = {
        {1, 1}, {-65504, -65504}, {65519.99, 65504}, {INFINITY, INFINITY}, {0, 0}, {-0.0, -0.0},
        {1 + 0x1p-11, 1}, {1 + 3 * 0x1p-11, 1 + 0x1p-9}, {1 + 0x1p-11 + 0x1p-20, 1 + 0x1p-10},
        {2 - 0x1p-12, 2},                                       // the carry reaches the exponent
        {0x1p-14, 0x1p-14}, {0x1p-14 - 0x1p-26, 0x1p-14},       // the smallest normal number
        {0x1p-24, 0x1p-24}, {0x1p-25, 0}, {0x1.8p-24, 0x1p-23}, // subnormal, two ties
        {-0x1.01p-25, -0x1p-24}, {0x1.8p-15, 0x1.8p-15}, {0x1p-60, 0}, {NAN, NAN},
    };
    // Keys and values as they are written; what is not UTF-8 comes back as U+FFFD.
    static const char *const metadata[] = {
        "format", "pt", "a \"quoted\"\n\\key\x01\x7f", "\xc3\xa9\t\xf0\x9f\x98\x80", "empty", "",
        "not UTF-8", "a\xff\xc3", NULL};
    // clang-format on
    enum { N = 50021, TENSORS = 7, HALVES = sizeof halves / sizeof *halves };
    const char *path = scratch_path("round.safetensors");
    char text[64];
    real *x = filled(N, 1, 1), *y = zeros(N, sizeof *y), half[HALVES];
    double *wide = zeros(N, sizeof *wide), *back = zeros(N, sizeof *back);
    x[7] = -0.0f, x[8] = INFINITY, x[9] = (real)0x1p-149;
    for (int i = 0; i < N; i++) wide[i] = random_normal(3, 2, (uint64_t)i);
    wide[3] = 0x1p-1074, wide[4] = 1e300;
    for (int i = 0; i < HALVES; i++) half[i] = (real)halves[i][0];
    Stored tensors[TENSORS] =
        {
            {.name = "h.weight", .dtype = F16, .n_dim = 1, .shape = {HALVES}, .data = half},
            {.name = "y", .dtype = F32, .n_dim = 2, .shape = {1, N}, .data = x},
            {.name = "bias \"0\"", .dtype = F32, .n_dim = 1, .shape = {N}},
            {.name = "scalar", .dtype = F64, .data = x + 1},
            {.name = "none", .dtype = F32, .n_dim = 2, .shape = {0, 4}, .data = x},
            {.name = "real", .dtype = F64, .n_dim = 1, .shape = {N}, .data = x},
            {.name = "x", .dtype = F64, .n_dim = 1, .shape = {N}, .wide = wide},
        },
           t;
    Safetensors s;
    REQUIRE(!safetensors_write(path, tensors, TENSORS, metadata) && !safetensors_open(&s, path));
    for (int i = 0; i < TENSORS; i++) {
        const Stored *from = &tensors[i];
        REQUIRE(safetensors_find(&s, from->name, &t));
        int same = t.n_dim == from->n_dim && !memcmp(t.shape, from->shape, sizeof t.shape);
        CHECK(same && t.dtype == from->dtype, "%s has another shape", t.name);
        memset(y, 1, N * sizeof *y);
        CHECK(!safetensors_read(&s, &t, y, NULL), "%s", error_text());
        for (Size j = 0; j < t.count; j++) {
            real want = from->wide ? (real)wide[j] : !from->data ? 0 : from->data[j];
            if (t.dtype == F32) want = (real)(float)want;
            if (t.dtype == F16) want = (real)halves[j][1];
            CHECK(!memcmp(&y[j], &want, sizeof want), "%s[%lld] is %a", t.name, j, (double)y[j]);
        }
    }
    for (int i = 0; i < 8; i += 2) {
        const char *want = i < 6 ? metadata[i + 1] : "a\xef\xbf\xbd\xef\xbf\xbd";
        CHECK(!safetensors_metadata(&s, metadata[i], text, 64) && !strcmp(text, want), "%s", text);
    }
    CHECK(safetensors_metadata(&s, "format", text, 2) == -1, "too little room");
    CHECK(safetensors_metadata(&s, "absent", text, 64) == -1, "absent");
    safetensors_close(&s);
    CHECK(!read_x(path, y, back) && !memcmp(wide, back, N * sizeof *wide), "other doubles");
    for (int n = 0; n < 9; n++) { // the data begins on a multiple of 8 whatever the header's length
        tensors[0].name = &"abcdefgh"[n];
        REQUIRE(!safetensors_write(path, tensors, 1, NULL) && !safetensors_open(&s, path));
        CHECK(safetensors_find(&s, tensors[0].name, &t) && t.begin % 8 == 0, "at %lld", t.begin);
        safetensors_close(&s);
    }
}

/* What cannot be written is refused by name, the old file stays, and no other is left behind; what
   shrinks between opening and reading is an error, not garbage. */
static void test_safetensors_write_refused(void) {
    const char *path = scratch_path("old.st");
    enum { N = 100000 }; // more than is read with the header
    real *data = filled(N, 1, 1), *x = zeros(N, sizeof *x);
    Stored t = {.name = "x", .dtype = F32, .n_dim = 1, .shape = {N}, .data = data};
    Safetensors s;
    data[N - 1] = 65520;
    REQUIRE(!safetensors_write(path, &t, 1, NULL));
    check_refused(safetensors_write(scratch_path("absent/x"), &t, 1, NULL),
                  "cannot write ... absent/x");
    t.dtype = F16;
    check_refused(safetensors_write(path, &t, 1, NULL), "old.st: tensor x: 65520");
    CHECK(!read_x(path, x, NULL) && x[N - 1] == 65520, "the old file is gone");
    const double large = -0x1.ffffffp127; // from here on floats are infinite
    const Stored wide = {.name = "w", .dtype = F32, .n_dim = 1, .shape = {1}, .wide = &large};
    check_refused(safetensors_write(path, &wide, 1, NULL), "old.st: tensor w: ");
#ifndef ALONE
    const char *part = scratch_path("old.st.%d.part", (int)getpid()); // what it is writing
    CHECK(access(part, F_OK), "%s is left behind", part);
    t.dtype = F32;
    REQUIRE(!mkdir(part, 0777));
    check_refused(safetensors_write(path, &t, 1, NULL), "cannot write ... old.st. ... .part");
    REQUIRE(!rmdir(part) && !symlink(scratch_path("victim"), part)); // which must not be followed
    CHECK(!safetensors_write(path, &t, 1, NULL), "%s", error_text());
    CHECK(access(scratch_path("victim"), F_OK), "followed a link");
    write_bytes(scratch_path("old.st.part"), "a run's", 7); // which has its folder to itself
    CHECK(!safetensors_write(path, &t, 1, NULL), "%s", error_text());
    CHECK(!remove(scratch_path("old.st.part")), "took another process's part");
    CHECK(!read_x(path, x, NULL), "%s", error_text());
#endif
    for (t.dtype = BF16; t.dtype <= OTHER; t.dtype++) // which can be read, at the most
        CHECK(safetensors_write(scratch_path("other"), &t, 1, NULL) == -1, "dtype %d", t.dtype);
    REQUIRE(!safetensors_open(&s, path) && safetensors_find(&s, "x", &t));
    write_bytes(path, "", 0); // the same file, now empty
    check_refused(safetensors_read(&s, &t, x, NULL), "old.st: tensor x");
    safetensors_close(&s);
}

/* ---- model directories ---------------------------------------------------------------------- */

static int directory_model(Model *m) {
    if (random_model(m, (Config){5, 9, 12, 3, 3, 4, OBJECTIVE_BERT}, NULL)) return -1;
    strcpy(m->class_names[2], "People \"&\" Body"); // of 4
    return 0;
}

static int is_same_file(const char *folder_a, const char *folder_b, const char *name) {
    Size n, m;
    const uint8_t *a = read_bytes(scratch_path("%s/%s", folder_a, name), &n);
    const uint8_t *b = read_bytes(scratch_path("%s/%s", folder_b, name), &m);
    return a && b && n == m && !memcmp(a, b, (size_t)n);
}

static void check_same_file(const char *folder_a, const char *folder_b, const char *name) {
    CHECK(is_same_file(folder_a, folder_b, name), "%s: %s, %s", name, folder_a, folder_b);
}

/* Loading a directory fails, and the sentence has the file's path and this word. */
static void check_not_loaded(const char *folder, const char *file, const char *word) {
    Model m;
    int bad = keep_model(&m, model_load(&m, scratch_path("%s", folder)));
    check_refused(bad && !m.params, scratch_path("%s/%s", folder, file));
    check_holds(error_text(), word);
}

static const char *const directory_files[] = {"model.safetensors", "config.json",
                                              "preprocessor_config.json"};

/* What is read is what was written; and whatever is cut off a file, loading names the file. */
static void test_model_directory(void) {
    Model m, back;
    REQUIRE(!directory_model(&m));
    REQUIRE(!model_save(&m, scratch_path("model/deep"), IS_DOUBLE ? F64 : F32));
    REQUIRE(!keep_model(&back, model_load(&back, scratch_path("model/deep"))));
    REQUIRE(m.n_params == back.n_params);
    CHECK(!reals_apart(m.params, back.params, m.n_params), "the weights differ");
    CHECK(reals_apart(m.palette, back.palette, 27) < 1e-7, "the palette differs");
    CHECK(!strcmp(back.class_names[2], m.class_names[2]), "class 2 is %s", back.class_names[2]);
    REQUIRE(!model_save(&back, scratch_path("model/copy"), IS_DOUBLE ? F64 : F32));
    for (int i = 0; i < 3; i++) {
        const char *file = directory_files[i], *path = scratch_path("model/deep/%s", file);
        check_same_file("model/deep", "model/copy", file);
        Size n;
        uint8_t *bytes = read_bytes(path, &n);
        for (Size left = 0; left < n; left += n / 7 + 1) {
            write_bytes(path, bytes, left);
            check_not_loaded("model/deep", file, "");
        }
        remove(path);
        check_not_loaded("model/deep", file, i < 2 ? "is not there" : "cannot open");
        write_bytes(path, bytes, n);
    }
}

/* Directories that differ from a model's own, whose weights and palette are zeros. They are refused
   by the name of what differs; or they load, and all parameters are 0 but for a 1 in ln_f. */
static void test_foreign_directories(void) {
    static const struct {
        int file;
        const char *was, *becomes, *word; // texts of one length; in the refusal, NULL: it loads
        int headless, n_class;            // no lm_head; of what loads
        const char *set;                  // a tensor
        int upper;                        // half of its first float
    } rows[] = {{1, "1e-05", "1e-06", .word = "layer_norm_epsilon"},
                {1, "\"n_embd\": 12", "\"n_embd\": []", .word = "n_embd is -1"},
                {1, "\"n_layer\"", "\"m_layer\"", .word = "n_layer is -1"},
                {1, "quick_gelu", "gelu_newer", .word = "activation_function"},
                {1, "embeddings\": false", "embeddings\": true ", .word = "tie_word_embeddings"},
                {1, "layer_idx\": false", "layer_idx\": true ", .word = "by_inverse_layer_idx"},
                {1, "attn_weights\": true", "attn_weights\":    0", .word = "scale_attn_weights"},
                {1, "\"n_inner\": 48", "\"n_inner\": 24", .word = "n_inner"},
                {1, "positions\": 25", "positions\": 26", .word = "n_positions"},
                {1, "\"ar\"", "\"gr\"", .word = "igpt_objective"},
                {2, "\"clusters\"", "\"clusterz\"", .word = "clusters[0] is missing"},
                {2, "[0, 0, 0]", "[0,0]    ", .word = "clusters[0]"},
                {2, "[0, 0, 0]", "[0,0,0,0]", .word = "not three"},
                {2, "[0, 0, 0]", "[0,0,-16]", .word = "clusters[0]"},
                {2, "[0, 0, 0],", "          ", .word = "1 colours"},
                {0, .set = "h.1.attn.c_attn.bias", .upper = 0x3f80,
                 .word = "c_attn.bias is not zero: igpt has no biases"},
                {0, .set = "wpe.weight", .upper = 0x7fc0, .word = "wpe.weight"}, // NaN
                {0, "[9,12]", "[12,9]", .word = "lm_head.weight"},
                {0, "h.2.ln_2.weight", "h.2.ln_9.weight", .word = "h.2.ln_2.weight"},
                {0, .headless = 1, .word = "lm_head.weight"},
                {0, .headless = 1, .n_class = 4, .set = "ln_f.weight", .upper = 0x3f80},
                {0, ".bias", ".size", .n_class = 4, .set = "ln_f.weight", .upper = 0x3f80},
                {0, "\"transformer.", "            \"", NULL, 1, 0, "ln_f.weight", 0x3f80}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *file = directory_files[rows[i].file], *path = scratch_path("foreign/%s", file);
        Model m;
        Size n;
        const Config c = {5, 9, 12, 3, 3, rows[i].n_class, OBJECTIVE_AR};
        REQUIRE(!keep_model(&m, model_init(&m, c)));
        REQUIRE(!model_save(&m, scratch_path("foreign"), F32));
        uint8_t *bytes = read_bytes(path, &n);
        char *text = (char *)bytes + (rows[i].file ? 0 : 8), *p; // up to the zeros of the data
        uint8_t *data = (uint8_t *)text + strlen(text);
        if (rows[i].headless) memcpy(strstr(text, "lm_head"), "lm_heap", 7);
        if (rows[i].set) {
            data += atol(strstr(strstr(text, rows[i].set), "offsets\":[") + 10);
            data[2] = (uint8_t)rows[i].upper, data[3] = (uint8_t)(rows[i].upper >> 8);
        }
        for (p = text; rows[i].was && (p = strstr(p, rows[i].was)); p++)
            memcpy(p, rows[i].becomes, strlen(rows[i].was));
        write_bytes(path, bytes, n);
        if (rows[i].word) check_not_loaded("foreign", file, rows[i].word);
        if (rows[i].word) continue;
        REQUIRE(!keep_model(&m, model_load(&m, scratch_path("foreign"))));
        double sum = 0;
        for (Size k = 0; k < m.n_params; k++) sum += (double)m.params[k];
        CHECK(sum == 1 && m.config.n_class == rows[i].n_class, "row %zu: sum %g", i, sum);
    }
}

/* What transformers saved (data/make_hf.py), in BF16: its logits and palette indices; and, saved
   again, what its loader needs to see: tensors of the same names and shapes. */
static void test_hugging_face_model(void) {
    enum { B = 3, T = 16, K = 12 };
    char text[8];
    Model m;
    Safetensors file, again;
    Stored t;
    REQUIRE(!keep_model(&m, model_load(&m, "data/fixture/hf")));
    REQUIRE(!safetensors_open(&file, "data/fixture/hf/expected.safetensors"));
    const uint16_t *tokens = stored_tokens(&file, "tokens", B * T);
    const real *rgb = stored_reals(&file, "", "rgb", B * T * 3);
    const real *logits = stored_reals(&file, "", "logits", B * T * K);
    const uint16_t *indices = stored_tokens(&file, "indices", B * T);
    safetensors_close(&file);
    uint16_t nearest[B * T];
    uint8_t bytes[B * T * 3];
    for (int i = 0; i < B * T * 3; i++) bytes[i] = (uint8_t)rgb[i];
    Activations *acts = keep(activations_new(&m.config, B, KEEP_NOTHING));
    model_forward(&m, acts, &(Batch){B, tokens, NULL, NULL});
    double worst = reals_apart(model_logits(&m, acts, B), logits, B * T * K), largest = 0;
    for (int i = 0; i < B * T * K; i++) largest = larger(largest, fabs((double)logits[i]));
    CHECK(worst < 1e-5 && largest > 1, "logits up to %g are off by %g", largest, worst);
    CHECK(!palette_index(nearest, bytes, B * T, m.palette, K), "%s", error_text());
    for (int i = 0; i < B * T; i++) CHECK(nearest[i] == indices[i], "pixel %d: %d", i, nearest[i]);
    REQUIRE(!model_save(&m, scratch_path("hf"), F16));
    REQUIRE(!safetensors_open(&again, scratch_path("hf/model.safetensors")));
    REQUIRE(!safetensors_open(&file, "data/fixture/hf/model.safetensors"));
    for (const Stored *s = file.tensors; s < file.tensors + file.n_tensors; s++)
        CHECK(safetensors_find(&again, s->name, &t) && t.dtype == F16 &&
                  !memcmp(t.shape, s->shape, sizeof t.shape),
              "%s", s->name);
    CHECK(again.n_tensors == file.n_tensors, "%lld tensors", again.n_tensors);
    CHECK(!safetensors_metadata(&again, "format", text, 8) && !strcmp(text, "pt"), "%s", text);
    safetensors_close(&file);
    safetensors_close(&again);
    check_holds(read_text("hf/config.json"), "_type\": \"imagegpt\", ... _size\": 13,");
    check_holds(read_text("hf/preprocessor_config.json"),
                "\"do_normalize\": true, ... \"resample\": 4, ... {\"height\": 4, \"width\": 4}");
}

/* ---- pictures ------------------------------------------------------------------------------- */

static uint32_t png_word(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* CRC-32 bit by bit, as the PNG specification defines it. */
static uint32_t png_crc(const uint8_t *p, Size n) {
    uint32_t crc = ~0u;
    for (Size i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
    }
    return ~crc;
}

/* Undo zlib's stored blocks; returns how many bytes they held. */
static Size png_unpack(uint8_t *raw, const uint8_t *z, Size n) {
    const uint8_t *block = z + 2, *end = z + n - 4;
    Size used = 0, length;
    CHECK((z[0] * 256 + z[1]) % 31 == 0 && (z[0] & 15) == 8, "zlib header");
    for (int last = 0; !last && end - block > 5; block += 5 + length) {
        length = block[1] + 256 * block[2];
        last = block[0] & 1;
        CHECK(block[0] < 2 && (length ^ 0xffff) == block[3] + 256 * block[4], "block");
        if (length > end - block - 5) return -1;
        memcpy(raw + used, block + 5, (size_t)length);
        used += length;
    }
    uint64_t low = 1, high = 0;
    for (Size i = 0; i < used; i++) high += low += raw[i];
    CHECK(block == end && png_word(end) == ((high % 65521) << 16 | low % 65521), "Adler-32");
    return used;
}

/* The pixels of a PNG of this size and type (2: RGB, 3: palette); NULL after a failed CHECK. */
static uint8_t *png_read(const char *path, Size width, Size height, int type) {
    static const char *const names[] = {"IHDR", "PLTE", "IDAT", "IEND"};
    Size n, place = 8, n_colours = 0, row = (type == 3 ? 1 : 3) * width + 1, packed = 0;
    const uint8_t *png = read_bytes(path, &n), *colours = NULL;
    uint8_t *z = zeros(n, 1), *raw = zeros(n, 1), *rgb = zeros(width * height, 3), *out = rgb;
    CHECK(n > 60 && !memcmp(png, "\x89PNG\r\n\x1a\n", 8), "%s: no PNG", path);
    for (int k = 0; k < 4; k++) {
        if (k == 1 && type == 2) continue;
        Size size = place + 12 <= n ? png_word(png + place) : n;
        const uint8_t *name = png + place + 4, *data = name + 4;
        int sound = size <= n - place - 12 && !memcmp(name, names[k], 4) &&
                    png_word(data + size) == png_crc(name, size + 4);
        if (k == 0 && sound)
            sound = png_word(data) == width && png_word(data + 4) == height &&
                    !memcmp(data + 8, type == 3 ? "\10\3\0\0\0" : "\10\2\0\0\0", 5);
        CHECK(sound, "%s: wrong %s", path, names[k]);
        if (!sound) return NULL;
        if (k == 1) colours = data, n_colours = size / 3;
        if (k == 2) memcpy(z + packed, data, (size_t)size), packed += size;
        place += size + 12;
        if (k == 2 && !memcmp(png + place + 4, "IDAT", 4)) k--; // there are several
    }
    Size used = png_unpack(raw, z, packed);
    CHECK(place == n && used == height * row, "%s: %lld bytes of pixels", path, used);
    if (used != height * row) return NULL;
    for (Size i = 0; i < used; i++) {
        if (i % row == 0) CHECK(raw[i] == 0, "row %lld has a filter", i / row);
        else if (type != 3) *out++ = raw[i];
        else if (raw[i] < n_colours) memcpy(out, colours + 3 * raw[i], 3), out += 3;
        else CHECK(0, "colour %d of %lld", raw[i], n_colours);
    }
    return rgb;
}

static void test_png(void) {
    static const Size rows[][4] = {{1, 1, 1, 3},        {7, 5, 2, 3},       {40, 60, 2400, 2},
                                   {211, 131, 9999, 2}, {301, 231, 256, 3}, {301, 231, 257, 2}};
    // width, height, colours, type; the last three take more than one stored block
    const char *path = scratch_path("picture.png"), *none = scratch_path("no/such/folder.png");
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        Size width = rows[k][0], height = rows[k][1], colours = rows[k][2], n = width * height;
        uint8_t *rgb = zeros(n, 3);
        for (Size i = 0; i < n; i++) { // each colour is there
            Size random = (Size)(random_bits(1, 1, (uint64_t)i) >> 32);
            Size colour = (i < colours ? i : random % colours) * 12345;
            for (int j = 0; j < 3; j++) rgb[3 * i + j] = (uint8_t)(colour >> 8 * j);
        }
        REQUIRE(!png_write(path, rgb, width, height));
        const uint8_t *is = png_read(path, width, height, (int)rows[k][3]);
        CHECK(is && !memcmp(is, rgb, (size_t)(3 * n)), "row %zu", k);
    }
    const char *two = "\1\1\1\2\2\2\3\3\3\4\4\4\5\5\5\6\6\6\7\7\7\10\10\10"; // of 2 x 2
    REQUIRE(!sheet_write(path, (const uint8_t *)two, 2, 2, 2));
    const uint8_t *sheet = png_read(path, 204, 104, 3); // each pixel 48 wide
    for (int i = 0; i < 8 && sheet; i++) {
        int y = 4 + i / 2 % 2 * 48, x = 4 + i / 4 * 100 + i % 2 * 48;
        CHECK(sheet[3 * (y * 204 + x)] == i + 1, "(%d, %d) is %d", y, x, sheet[3 * (y * 204 + x)]);
    }
    check_refused(png_write(none, (const uint8_t *)"abc", 1, 1), none);
}

static int count_words(const char *text, const char *word) {
    int count = 0;
    for (; text && (text = strstr(text, word)); text++) count++;
    return count;
}

/* The first line of two pictures of 2 x 2, and the last of one of 3 x 3: it has no lower pixels. */
static void test_terminal(void) {
    static const char wanted[] = "\033[38;2;0;1;2m\033[48;2;6;7;8m\xe2\x96\x80"
                                 "\033[38;2;3;4;5m\033[48;2;9;10;11m\xe2\x96\x80\033[0m "
                                 "\033[38;2;12;13;14m\033[48;2;18;19;20m\xe2\x96\x80"
                                 "\033[38;2;15;16;17m\033[48;2;21;22;23m\xe2\x96\x80\033[0m\n"
                                 "\033[38;2;18;19;20m\xe2\x96\x80\033[38;2;21;22;23m\xe2\x96\x80"
                                 "\033[38;2;24;25;26m\xe2\x96\x80\033[0m\n";
    uint8_t rgb[27];
    for (int i = 0; i < 27; i++) rgb[i] = (uint8_t)i;
    FILE *f = fopen(scratch_path("terminal"), "wb");
    terminal_rows(f, rgb, 2, 2, 0);
    terminal_rows(f, rgb, 1, 3, 2);
    fclose(f);
    const char *text = read_text("terminal");
    CHECK(!strcmp(text, wanted), "%s", text);
}

static void test_chart(void) {
    static const double x[] = {0, 1, 2}, y[] = {1, NAN, 3};
    static const double late[] = {0, 5, 26, 30}, level[] = {-0.2, NAN, 0.31, NAN};
    const Series series[] = {{"a & b < c", "#123456", 3, 1, x, y, 1},
                             {"level", "#000", 4, 1, late, level, 0}};
    REQUIRE(!chart_write(scratch_path("chart.svg"), "title", "x", "y", series, 1));
    const char *svg = read_text("chart.svg");
    CHECK(!strncmp(svg, "<svg ", 5) && strstr(svg, "</svg>"), "no SVG");
    CHECK(!strstr(svg, "nan") && count_words(svg, "<circle") == 2, "%s", svg);
    CHECK(count_words(svg, "<path") == 3 + 4, "ticks: %s", svg);
    check_holds(svg,
                "[0]] ... [1]] ... x=\"670.0\" y=\"385.0\" text-anchor=\"middle\" ... [2]] ... "
                "[0]] ... [1]] ... [2]] ... y=\"68.0\" text-anchor=\"end\" ... [3]] ... "
                "\"70.0,264.7 670.0,64.0 \" ... x=\"682.0\" y=\"68.0\" ... [a & b < c]]");
    REQUIRE(!chart_write(scratch_path("chart.svg"), "", "", "", series + 1, 1));
    svg = read_text("chart.svg");
    CHECK(count_words(svg, "<path") == 7 + 7, "ticks: %s", svg); // the name stands at (26, 0.31)
    check_holds(svg, "[0]] ... [5]] ... [10]] ... [30]] ... [-0.2]] ... [-0.1]] ... [0]] ... [0.4]]"
                     " ... x=\"602.0\" y=\"113.0\" ... [level]]");
    const double two[] = {2, 2}, close[] = {2, nextafter(2, 3)};
    const double far[] = {-1e300, 1e300}, large[] = {1e300, 1e300};
    const double *const rows[] = {two, close, far, large};
    for (int i = 0; i < 4; i++) { // a tick that is too short to get on by must not go on for ever
        const Series line = {"extreme", "#000", 2, 1, rows[i], rows[i], 0};
        REQUIRE(!chart_write(scratch_path("chart.svg"), "", "", "", &line, 1));
        CHECK(strlen(read_text("chart.svg")) < 20000, "line %d has no end of ticks", i);
    }
}

/* ---- the program ---------------------------------------------------------------------------- */

#ifndef ALONE
static char igpt_line[2600], igpt_output[1 << 16]; // of the last call; "\n" first

/* Run ./igpt, or what the environment calls IGPT; $S in its arguments is the tests' folder. It must
   end with this status (minus the signal that ended it) and print these parts. A signal, if not 0,
   is sent at a training's first test, SIGKILL at its second, with a state to go back to. */
static void igpt_run(int signal_sent, int status, const char *parts, const char *format, ...) {
    const char *program = getenv("IGPT") ? getenv("IGPT") : "./igpt";
    int n = snprintf(igpt_line, 512, "S='%s'; exec 2>&1; echo $$; exec %s ", scratch, program);
    va_list args;
    va_start(args, format);
    vsnprintf(igpt_line + n, sizeof igpt_line - (size_t)n, format, args);
    va_end(args);
    FILE *f = popen(igpt_line, "r");
    char *line = strcpy(igpt_output, "\n") + 1, *end = igpt_output + sizeof igpt_output, pid[32];
    int tests = 0, last = signal_sent == SIGKILL ? 2 : 1;
    REQUIRE(f && fgets(pid, sizeof pid, f));
    for (; end - line > 1 && fgets(line, (int)(end - line), f); line += strlen(line)) {
        tests += !strncmp(line, "step ", 5) && strstr(line, "train ");
        if (signal_sent && tests == last) kill((pid_t)atol(pid), signal_sent), signal_sent = 0;
    }
    int is = pclose(f);
    is = WIFEXITED(is) ? WEXITSTATUS(is) : -WTERMSIG(is);
    CHECK(is == status, "status %d, expected %d: %s: %s", is, status, igpt_line + n, igpt_output);
    check_holds(igpt_output, parts);
}

#    define IGPT(status, parts, ...) igpt_run(0, status, parts, __VA_ARGS__)
/* Under a limit of memory ./igpt itself runs, not what IGPT calls: a sanitizer alone takes more. */
#    define LIMITED(kilobytes) "--version & wait; ulimit -v " #kilobytes "; exec ./igpt "
/* The command goes on in the background, as $!, and what follows THEN begins when this holds. */
#    define UNTIL "& until "
#    define THEN "; do kill -0 $! || exit; done; "
#    define SMALL "--n-layer 1 --n-embd 32 --n-head 2 --n-px 8 --n-vocab 12 "

/* The number behind this name in what the program printed. */
static double printed(const char *name) {
    char line[64];
    snprintf(line, sizeof line, "\n%s ", name);
    const char *found = strstr(igpt_output, line);
    CHECK(found, "%s is not in: %s", name, igpt_output);
    return found ? atof(found + strlen(line)) : NAN;
}

static void test_command_line(void) {
    static const struct {
        int status;
        const char *word, *arguments;
    } rows[] = {
        {0, "igpt train", "--help"},
        {0, "--recompute", "train --help"},
        {0, "--from-scratch", "finetune --help"},
        {0, "--concat N", "probe --help"},
        {0, "--temperature", "sample --help"},
        {0, "--rows N", "complete --model x --help"},
        {0, "--masks", "eval -h"},
        {0, "--palette FILE", "palette --help"},
        {0, "igpt-xl: --n-layer 60", "info --help"},
        {0, "--recompute", "help train"},
        {2, "did you mean train?", "help trian"},
        {0, "parameters_millions 0.22\n", "info"},
        {0, "parameters_millions 1362\n", "info --preset igpt-l"},
        {0, "n_embd 128\n", "info --model data/emoji-ar"},
        {0, "igpt 2.0: float, ", "--version"},
        {2, "train", "trian"},
        {2, "igpt --help", "something-else"},
        {2, "--steps", "train --step 5"},
        {2, "0 values; it is used so: --steps N", "train --steps"},
        {2, "number", "train --steps many"},
        {2, "number", "train --steps 5x"},
        {2, "whole number", "train --steps 1.5"},
        {2, "--threads", "train --threads -1"},
        {2, "no option", "train surplus"},
        {2, "2 values", "train --lr 1 surplus"},
        {2, "1 values", "train --quiet surplus"},
        {2, "ar|bert", "train --objective gan"},
        {2, "mask-prob", "train --mask-prob 0"},
        {2, "--lr", "train --lr 0"},
        {1, "objective bert", "train --mask-prob 0.2 --out $S/unmade"},
        {1, "objective bert", "eval --model data/emoji-ar --masks 3"},
        {1, "cannot go together", "info --preset igpt-s --model data/emoji-ar"},
        {1, "MB to train", "train --preset igpt-xl --micro-batch 64 --out $S/unmade"},
        {2, "igpt-l", "train --preset huge"},
        {2, "not empty", "eval --data ''"},
        {2, "--image FILE", "complete --image --rows 3"},
        {2, "mean|none", "probe --pool max"},
        {2, "0|1, not \"2\"", "sample --show 2"},
        {2, "0|1, not \"7\"", "train --flip 7"},
        {2, "palette has no option --show", "palette --show 1"},
        {2, "whole number from 2 to", "palette --n-vocab 1"},
        {1, "n_head", "train --n-embd 30 --n-head 4"},
        {1, "no/such", "train --data no/such --out $S/unmade"},
        {1, "--n-embd", "train --init data/emoji-ar --n-embd 64"},
        {1, "no/such holds no run", "train --resume --out no/such"},
        {1, "--palette, --init and --resume", "train --init data/emoji-ar --palette no/such.json"},
        {1, "--rows 200", "complete --model data/emoji-ar --rows 200"},
        {1, "only 7 layers", "probe --model data/emoji-ar --concat 8"},
        {1, "not 5000", "probe --model data/emoji-ar --labels-per-class 5000"},
        {1, "cannot go together", "train --resume --overwrite --out $S/unmade"},
        {1, "not 5000", "finetune --model data/emoji-ar --labels-per-class 5000 --out $S/unmade"},
        {1, "no/such", "probe --model no/such"},
        {1, "no/such.json", "train --palette no/such.json --out $S/unmade"},
        {1, "no/such.json", "palette --palette no/such.json --out $S/unmade"},
        {1, "no such folder", "palette --data no/such --out $S/unmade"},
        {1, "cannot write to stdout", "train --help >/dev/full"},
        {1, "README", "info --model openai/imagegpt-small"},
        {1, "/file", "train --steps 1 --out $S/file"}};
    write_bytes(scratch_path("file"), "", 0);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        IGPT(rows[i].status, rows[i].word, "%s", rows[i].arguments);
        CHECK(rows[i].status != 2 || count_words(igpt_output, "\n") == 2, "%s", igpt_output);
        for (const char *line = igpt_output; line && !rows[i].status; line = strchr(line + 1, '\n'))
            CHECK(strcspn(line + 1, "\n") <= 80, "a line wider than a terminal: %s", line);
    }
    CHECK(access(scratch_path("unmade"), F_OK) != 0, "a run that could not start left a folder");
}

/* A run that is stopped and resumed twice, on other threads, ends with the same bytes and the
   same log as one that was never stopped. Ctrl-C comes within a test, so the next step is the
   last, whose row the log must not have; a kill goes back to the last state. Finetunes have
   models from above. */
static void test_resume(void) {
    static const struct {
        const char *name, *command, *figure;
        int signal;
        const char *arguments;
    } runs[] = {
        {"ar", "train", "train_nats_per_pixel", SIGINT,
         SMALL "--batch 4 --micro-batch 3 --seed 2 --steps 600 --eval-every 100"},
        {"bert", "train", "train_nats_per_pixel", SIGKILL,
         SMALL "--objective bert --recompute --batch 8 --steps 300 --eval-every 60 --save-every 7"},
        {"tuned", "finetune", "best_step", SIGINT,
         "--model $S/bert --batch 8 --micro-batch 5 --steps 250 --eval-every 30 --lr 0.003 --f16"},
        {"few", "finetune", "best_step", SIGTERM,
         "--model $S/ar --batch 8 --steps 60 --eval-every 15 --from-scratch --labels-per-class 3"},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        const char *name = runs[i].name, *command = runs[i].command;
        char again[64], stopped[32];
        snprintf(stopped, sizeof stopped, "%s-stopped", name);
        snprintf(again, sizeof again, "go on with: igpt %s --resume --out", command);
        IGPT(0, "", "%s %s --out $S/%s --quiet --threads 1", command, runs[i].arguments, name);
        double figure = printed(runs[i].figure);
        int killed = runs[i].signal == SIGKILL;
        for (int stop = 0; stop < 2; stop++)
            igpt_run(runs[i].signal, killed ? -SIGKILL : 1, killed ? "" : again,
                     "%s %s --out $S/%s --threads 2", command,
                     stop ? "--resume" : runs[i].arguments, stopped);
        IGPT(0, "", "%s --resume --quiet --threads 3 --out $S/%s", command, stopped);
        CHECK(printed(runs[i].figure) == figure, "expected %g: %s", figure, igpt_output);
        for (int k = 0; k < 3; k++) check_same_file(name, stopped, directory_files[k]);
        IGPT(0, "", // the second column is the seconds
             "--version & wait; cut -d, -f1,3- $S/%s/log.csv >$S/log && "
             "cut -d, -f1,3- $S/%s/log.csv | cmp - $S/log && [ -s $S/log ]",
             name, stopped);
    }
    check_same_file("ar", "ar-stopped", "samples.png");
    check_same_file("ar", "ar-stopped", "progress.png");
    IGPT(1, "no run of igpt train", "train --resume --out $S/tuned");
    IGPT(0, "step 620\n", "train --resume --steps 620 --quiet --out $S/ar-stopped");
    // What was not given is kept, too, for a version with other defaults.
    const char *state = read_text("few/train_state.safetensors");
    REQUIRE(state);
    const char *words = state + 8; // of the header, behind its length
    CHECK(strstr(words, "--lr\\u000a0.001"), "the default rate is not kept");
    CHECK(!strstr(words, "save-every"), "saves would not follow another --eval-every");
}

/* A short run learns more than to count colours. What train measures, eval repeats. */
static void test_train_eval_sample(void) {
    static const char train[] = "train --overwrite " SMALL "--batch 8 --out $S/drawer";
    IGPT(0, "pictures: 2195 for training, 393 for testing; classes: 9", "%s --steps 1 --lr 1e-9",
         train);
    CHECK(fabs(printed("nats_per_pixel") - log(12)) < 1e-3, "no ln 12: %s", igpt_output);
    IGPT(0, "", "%s --steps 120 --warmup 20 --lr 0.01", train);
    double nats = printed("nats_per_pixel");
    CHECK(nats < 0.8 * printed("unigram_nats"), "it has not learnt: %s", igpt_output);
    IGPT(0, "images 393\n", "eval --model $S/drawer --threads 1");
    CHECK(printed("nats_per_pixel") == nats, "train says %g: %s", nats, igpt_output);
    CHECK(fabs(printed("bits_per_pixel") - nats / log(2)) < 2e-5, "%s", igpt_output);
    IGPT(0, "/drawn/samples.png\n", "sample --model $S/drawer --out $S/drawn --n 3");
    png_read(scratch_path("drawn/samples.png"), 304, 104, 3);
    CHECK(!strstr(igpt_output, "\033["), "escape sequences where no terminal is: %s", igpt_output);
}

/* A long command line is kept. A run that is killed and resumed to end where it is has its last
   test, whether its state has a row in the log for it (each 20th step) or not. A progress.png that
   is full keeps every other line: of 25 tests 15, the last one the newest. */
static void test_resume_extremes(void) {
#    define TINY "train --n-layer 1 --n-embd 8 --n-head 1 --n-px 4 --n-vocab 6 --batch 2 --quiet "
    char repeated[60 * 7 + 1] = "", step[16], row[24];
    Safetensors state;
    for (int i = 0; i < 60; i++) strcat(repeated, "--lr 1 ");
    IGPT(0, "", TINY "%s --lr 0.001 --steps 3 --out $S/long", repeated);
    IGPT(0, "step 3\n", "train --resume --quiet --out $S/long");
    for (int every = 1; every <= 20; every += 19) {
        IGPT(0, "",
             TINY
             "--steps 40000 --eval-every 40000 --save-every %d --overwrite --out $S/young " UNTIL
             "[ -e $S/young/train_state.safetensors ]" THEN "kill -9 $!",
             every);
        REQUIRE(!safetensors_open(&state, scratch_path("young/train_state.safetensors")) &&
                !safetensors_metadata(&state, "step", step, sizeof step));
        safetensors_close(&state);
        IGPT(0, "train_nats_per_pixel", "train --resume --steps %s --out $S/young", step);
        CHECK(!strstr(igpt_output, "nan"), "%s", igpt_output);
        snprintf(row, sizeof row, "\n%s,", step);
        const char *log = read_text("young/log.csv");
        CHECK(count_words(log, row) == 1, "step %s: %s", step, log);
        remove(scratch_path("young/train_state.safetensors"));
    }
    IGPT(0, "", TINY "--steps 25 --eval-every 1 --out $S/full");
    const uint8_t *lines = png_read(scratch_path("full/progress.png"), 804, 1504, 3);
    const uint8_t *samples = png_read(scratch_path("full/samples.png"), 804, 504, 3);
    if (lines && samples)
        CHECK(!memcmp(lines + 1400 * 804 * 3, samples, 100 * 804 * 3), "another last line");
}

static void test_complete(void) {
    static const char complete[] = "complete --model $S/any --out $S/completed";
    const char *path = scratch_path("completed/completions.png");
    Model m;
    REQUIRE(!random_model(&m, (Config){24, 64, 16, 2, 1, 0, OBJECTIVE_AR}, "any"));
    IGPT(0, "completed", "%s", complete);
    png_read(path, 704, 804, 3); // cells of 100, a picture of 24 pixels in each, four times larger
    write_bytes(scratch_path("a.ppm"), "P6 1 1 255\nabc", 14);
    IGPT(0, "\xe2\x96\x80", "%s --show 1 --n 9 --image $S/a.ppm", complete);
    int shown = 3 * 24 * 12; // in 80 columns: what is given, a completion, the original
    CHECK(count_words(igpt_output, "\xe2\x96\x80") == shown, "%.200s", igpt_output);
    IGPT(0, "", "%s --image $S/a.ppm $S/a.ppm $S/a.ppm --n 2 --rows 0", complete);
    const uint8_t *rgb = png_read(path, 404, 304, 3);
    for (int i = 0; i < 96 * 3 && rgb; i++) // nothing is given: all is grey
        CHECK(rgb[(4 * 404 + 4) * 3 + i] == 128, "byte %d is not grey", i);
    IGPT(0, "", "%s --n 1 --rows 24", complete);
    rgb = png_read(path, 304, 804, 3);
    for (int y = 0; y < 804 && rgb; y++, rgb += 3 * 304) // all is given: all are the original
        CHECK(!memcmp(rgb, rgb + 300, 300) && !memcmp(rgb, rgb + 600, 300), "row %d differs", y);
}

/* What probe --features writes: parts, and the label and the features of one picture. */
static void check_features(const Model *m) {
    enum { TRAIN_N = 2195, N = 2588, ROWS = 3, D = 8, PICTURE = TRAIN_N + 7, T = 16 };
    Safetensors file;
    Stored s;
    Dataset data;
    Size counts[N_PARTS + 1] = {0}; // -1 ..
    REQUIRE(!safetensors_open(&file, scratch_path("features.safetensors")));
    CHECK(safetensors_find(&file, "features", &s) && s.n_dim == 3 && s.shape[1] == ROWS, "shape");
    const real *features = stored_reals(&file, "", "features", N * ROWS * D);
    const real *labels = stored_reals(&file, "", "labels", N);
    const real *parts = stored_reals(&file, "", "parts", N);
    safetensors_close(&file);
    for (int i = 0; i < N; i++)
        if (parts[i] >= -1 && parts[i] < N_PARTS) counts[(int)parts[i] + 1]++;
    CHECK(counts[1 + TRAIN_PART] == 9 * 4 && counts[1 + VALIDATION_PART] > 200 &&
              counts[1 + TEST_PART] == N - TRAIN_N && parts[PICTURE] == TEST_PART,
          "%lld unused, parts of %lld, %lld, %lld", counts[0], counts[1], counts[2], counts[3]);
    REQUIRE(!dataset_read(&data, "data/emoji", m->config.n_px));
    REQUIRE(!images_quantise(&data.test, m->palette, m->config.n_vocab));
    CHECK(labels[PICTURE] == data.test.labels[7], "label %g", (double)labels[PICTURE]);
    const Batch batch = {1, data.test.tokens + 7 * T, NULL, NULL};
    real *expected = zeros(ROWS * D, sizeof *expected);
    Activations *acts = keep(activations_new(&m->config, 1, KEEP_NOTHING));
    model_features(m, acts, &batch, POOL_MEAN, 1, expected);
    double worst = reals_apart(expected, features + PICTURE * ROWS * D, ROWS * D);
    CHECK(m->config.objective == OBJECTIVE_BERT || worst < 1e-5, "features are off by %g", worst);
    dataset_free(&data);
}

/* The probe by the program, of small random networks of both kinds. */
static void test_command_probe(void) {
    for (int kind = OBJECTIVE_AR; kind <= OBJECTIVE_BERT; kind++) {
        Model m;
        REQUIRE(!random_model(&m, (Config){4, 6, 8, 2, 2, 0, kind}, "net"));
        IGPT(0, "\njoined_test_accuracy ",
             "probe --model $S/net --out $S/probed --labels-per-class 4 --concat 2 --quiet "
             "--threads 1 --features $S/features.safetensors");
        const char *csv = read_text("probed/probe.csv"), *svg = read_text("probed/probe.svg");
        CHECK(count_words(csv, "\n") == 1 + 3 + 1 + 1, "probe.csv: %s", csv);
        CHECK(svg && strstr(svg, "chance") && strstr(svg, "best: layer"), "probe.svg: %s", svg);
        check_features(&m);
        IGPT(0, "\nbest_minus_last_error ",
             "probe --model $S/net --out $S/probed --quiet --threads 1");
        double lead = printed("best_minus_last"), error = printed("best_minus_last_error");
        double differ = error * error * 393 + lead * lead; // the share that just one told right
        CHECK(differ > fabs(lead) - 0.01 && differ < 1, "%g +- %g", lead, error);
    }
}

/* A BERT model is known as such by the later commands. */
static void test_bert_commands(void) {
    IGPT(0, "no samples.png",
         "train " SMALL "--batch 8 --steps 150 --eval-every 150 --objective bert --out $S/masked");
    CHECK(printed("nats_per_pixel") < 0.9 * printed("unigram_nats"), "%s", igpt_output);
    IGPT(0, "", "eval --model $S/masked");
    double five = printed("nats_per_pixel");
    IGPT(0, "", "eval --model $S/masked --masks 1 --threads 2");
    double one = printed("nats_per_pixel");
    CHECK(five != one && fabs(five - one) < 0.1, "five masks %g, one %g", five, one);
    IGPT(0, "", "eval --model $S/masked --masks 1 --mask-prob 0.9");
    CHECK(printed("nats_per_pixel") > one + 0.1, "seeing less should be harder: %s", igpt_output);
    IGPT(1, "BERT", "sample --model $S/masked --out $S/drawn");
    IGPT(0, "", "finetune --model $S/masked --steps 1 --masks 1 --quiet --out $S/unmasked");
    IGPT(1, "all steps are saved, not tested",
         "finetune --resume --masks 10000 --out $S/unmasked 2>$S/said & p=$!; until grep -q "
         "resuming $S/said; do kill -0 $p || exit; done; sleep 0.5; kill -TERM $p; (sleep 20; kill "
         "-KILL $p) >/dev/null 2>&1 & k=$!; wait $p; s=$?; kill $k; cat $S/said; exit $s");
    IGPT(0, "no samples.png", "train --init $S/masked --steps 1 --out $S/more");
}

/* Fine-tuning beats naming the commonest class, for both objectives and from scratch; the directory
   that it writes is a model with a class head, which eval and a second fine-tuning know. */
static void test_finetune(void) {
    static const char *const kinds[] = {"ar", "bert"};
    static const char teach[] = "--steps 150 --eval-every 50 --lr 0.003 --quiet --threads 1";
    for (int i = 0; i < 2; i++) {
        const char *kind = kinds[i];
        IGPT(0, "",
             "train --n-layer 1 --n-embd 48 --n-head 2 --n-px 8 --n-vocab 16 --batch 16 "
             "--steps 100 --eval-every 100 --quiet --threads 1 --objective %s --out $S/%s0",
             kind, kind);
        IGPT(0, "", "finetune --model $S/%s0 --out $S/%s1 %s", kind, kind, teach);
        double accuracy = printed("accuracy");
        CHECK(accuracy > printed("majority_accuracy") + 0.05, "%s", igpt_output);
        CHECK(printed("validation_accuracy") > 0.45, "%s", igpt_output);
        IGPT(0, "", "eval --model $S/%s1", kind);
        CHECK(printed("accuracy") == accuracy, "finetune says %g: %s", accuracy, igpt_output);
        IGPT(0, "", "finetune --model $S/%s1 --out $S/again --steps 2 --lr 1e-9 --overwrite", kind);
        CHECK(printed("accuracy") == accuracy, "the head had %g: %s", accuracy, igpt_output);
    }
    const char *config = read_text("ar1/config.json");
    CHECK(config && strstr(config, "\"1\": \"People & Body\""), "id2label: %s", config);
    IGPT(0, "18 to learn from",
         "finetune --model $S/ar0 --out $S/two --steps 20 --eval-every 7 --labels-per-class 2 "
         "--gen-weight 0");
    double majority = printed("majority_accuracy");
    IGPT(0, "", "eval --model $S/two");
    CHECK(printed("majority_accuracy") == majority, "few labels changed it: %s", igpt_output);
    IGPT(0, "", "finetune --model $S/ar0 --out $S/fresh --from-scratch %s", teach);
    CHECK(printed("accuracy") > printed("majority_accuracy") + 0.02, "%s", igpt_output);
    check_same_file("ar0", "fresh", "preprocessor_config.json");
}

/* A palette built alone is read back to the last digit. */
static void test_palette_command(void) {
    static const char from[] = "--n-px 8 --palette $S/pal/preprocessor_config.json";
    IGPT(0, "colours 24\n", "palette --n-px 8 --n-vocab 24 --out $S/pal");
    double coarse = printed("rms_error");
    CHECK(coarse < 20 && access(scratch_path("pal/palette.png"), R_OK) == 0, "%s", igpt_output);
    IGPT(0, "", "train %s --n-layer 1 --n-embd 16 --n-head 1 --steps 1 --out $S/pal1", from);
    check_same_file("pal", "pal1", "preprocessor_config.json");
    IGPT(0, "colours 24\n", "palette %s --out $S/pal2", from);
    CHECK(printed("rms_error") == coarse, "%g before: %s", coarse, igpt_output);
    IGPT(1, "24 colours", "palette %s --n-vocab 3 --out $S/pal2", from);
    IGPT(0, "colours 48\n", "palette --n-px 8 --n-vocab 48 --out $S/pal2");
    CHECK(printed("rms_error") < coarse, "%g with 24 colours: %s", coarse, igpt_output);
}

/* Nothing is lost by typing a command again, by two processes in one folder, by a save of which
   something cannot be written or removed, or by a folder that is moved away. */
static void test_nothing_lost(void) {
#    define FAULT(fault) "--version & wait; IGPT_FAULT='" fault " once' exec ./igpt_fault "
    IGPT(0, "", TINY "--steps 3 --out $S/kept");
    IGPT(0, "", "--version & wait; cp -r $S/kept $S/halved; cp -r $S/kept $S/third");
    IGPT(1, "kept holds a run of 3 steps: --resume goes on with it, --overwrite",
         TINY "--steps 3 --out $S/kept");
    IGPT(1, "kept holds a run of igpt train: take another --out, or --overwrite gives it up",
         "finetune --model data/emoji-ar --out $S/kept");
    IGPT(1, "holds a model", "palette --out $S/kept");
    IGPT(1, "it is a folder", "probe --model data/emoji-ar --features $S --out $S/kept");
    IGPT(1, "neither table nor chart",
         "probe --model data/emoji-ar --features $S/probe.csv --out $S");
    IGPT(1, "which would be lost",
         "probe --model $S/kept --out $S/drawn --features $S/kept/model.safetensors");
    IGPT(1, "another run is writing there",
         TINY "--steps 100000 --save-every 1 --out $S/shared " UNTIL
              "[ -e $S/shared/train_state.safetensors ]" THEN
              "${IGPT:-./igpt} train --resume --out $S/shared; s=$?; kill -9 $!; exit $s");
    IGPT(1, "another run is writing there", // a palette that comes too late would replace the run's
         "palette --n-px 24 --n-vocab 256 --out $S/raced 2>$S/raced.txt " UNTIL
         "grep -q k-means $S/raced.txt" THEN "${IGPT:-./igpt} " TINY
         "--steps 1 --out $S/raced; s=$?; kill $!; exit $s");
    IGPT(1, "train_state.safetensors: File too large",
         "--version & wait; ulimit -f 1000; exec "
         "${IGPT:-./igpt} " TINY "--overwrite --n-embd 160 --steps 3 --out $S/kept");
    IGPT(1, "cannot write ... model.safetensors", // behind the state
         FAULT("rename 3") TINY "--overwrite --seed 2 --steps 3 --out $S/halved");
    IGPT(1, "halved holds a run whose save was cut off: train or finetune --resume",
         "eval --model $S/halved");
    IGPT(1, "halved holds a run of 1 steps: --resume goes on", TINY "--steps 3 --out $S/halved");
    IGPT(1, "holds a model", "palette --out $S/halved");
    IGPT(1, "cannot remove ... config.json",
         FAULT("remove 9") TINY "--overwrite --seed 2 --steps 3 --out $S/third");
    IGPT(1, "cannot write", // the second sync is that of the folder, after the renaming
         FAULT("sync 2") "sample --model $S/kept --n 1 --out $S/synced");
    // A run follows its folder; what takes the place is not its own.
    IGPT(1, "and saved; go on with",
         TINY
         "--threads 1 --steps 2000000 --eval-every 2000000 --save-every 20000 --out $S/moved " UNTIL
         "[ -e $S/moved/train_state.safetensors ]" THEN
         "mv $S/moved $S/away; mkdir $S/moved; kill $!; wait $!");
    const char *stopped = strstr(igpt_output, "stopped at step ");
    REQUIRE(stopped);
    long step = atol(stopped + 16);
    CHECK(!rmdir(scratch_path("moved")), "files beside another run's");
    IGPT(0, "", "train --resume --steps %ld --out $S/away", step);
    CHECK(printed("step") == (double)step, "%s", igpt_output);
    IGPT(0, "step 3\n", "train --resume --quiet --out $S/kept");
    IGPT(0, "step 3\n", "train --resume --quiet --out $S/halved");
    IGPT(0, "step 3\n", "train --resume --quiet --out $S/third");
    check_same_file("halved", "third", "model.safetensors");
    check_same_file("halved", "third", "config.json");
}

/* What is no regular file, no whole model, or too large is refused by name, before it takes time or
   memory. */
static void test_refused_by_name(void) {
    static const char *const pipes[] = {"pipe", "pipes/samples.png", "pipes/log.csv"};
    static const char *const files[] = {"text pipes/pytorch_model.bin ?",
                                        "text sharded/pytorch_model.bin ?",
                                        "text sharded/model.safetensors.index.json ?", NULL};
    enum { KEYS = 3300000 }; // 16.5 MB of header: its refusal must not take a list of them
    char *keys = zeros(5 * KEYS + 2, 1);
    for (Size i = 0; i < KEYS; i++) memcpy(keys + 5 * i, i ? ",'':0" : "{'':0", 5);
    keys[5 * KEYS] = '}';
    Model m;
    REQUIRE(!random_model(&m, (Config){4, 6, 8, 2, 1, 0, OBJECTIVE_AR}, "crowded"));
    REQUIRE(!rename(hand_made(keys, "", 0), scratch_path("crowded/model.safetensors")));
    files_make(1, files);
    for (int i = 0; i < 3; i++) REQUIRE(!mkfifo(scratch_path("%s", pipes[i]), 0666));
    IGPT(1, "pipe: it is no regular file", "complete --model data/emoji-ar --image $S/pipe");
    IGPT(1, "pipe: it is no regular file", "palette --palette $S/pipe --out $S/pipes");
    IGPT(1, "/dev/zero: it is no regular file", "complete --model data/emoji-ar --image /dev/zero");
    IGPT(1, "samples.png: it is no regular", "sample --model data/emoji-ar --out $S/pipes");
    IGPT(1, "log.csv: it is no regular file", TINY "--steps 3 --out $S/pipes");
    IGPT(1, "igpt train` makes a model", "sample --model $S/never");
    IGPT(1, "holds pytorch_model.bin, not one model.safetensors; to convert it",
         "eval --model $S/pipes");
    IGPT(1, "holds model.safetensors.index.json, not one", "eval --model $S/sharded");
    IGPT(1, "meta.txt: it is no folder; `igpt train`", "eval --model data/emoji/batches.meta.txt");
    IGPT(1, "meta.txt: it is no folder; igpt's own",
         "train --data data/emoji/batches.meta.txt --out $S/unmade");
    IGPT(1, "igpt: igpt-l needs ",
         LIMITED(400000) "train --threads 1 --preset igpt-l --out $S/unmade");
    IGPT(1, "igpt: this model needs ", // bytes beyond 2^32
         LIMITED(400000) "train --threads 1 --batch 65536 --micro-batch 65536 --out $S/unmade");
    IGPT(1, "igpt: this model needs ... MB to train, there are 4",
         LIMITED(400000) "train --threads 1 --n-embd 16384 --n-layer 4 --n-head 16 --n-px 1 "
                         "--n-vocab 2 --out $S/unmade");
    IGPT(1, "go on with", // a log of so many tests would not fit
         LIMITED(400000) TINY "--threads 1 --steps 100000000 --eval-every 1 --out $S/vast " UNTIL
                              "[ -e $S/vast/train_state.safetensors ]" THEN "kill $!; wait $!");
    IGPT(1, "File too large",
         "--version & wait; ulimit -f 1; exec ${IGPT:-./igpt} sample "
         "--model data/emoji-ar --n 1 --out $S/tight");
    IGPT(1, "tensor : expected", LIMITED(200000) "sample --model $S/crowded");
    CHECK(!rmdir(scratch_path("tight")), "a part is left");
    CHECK(access(scratch_path("unmade"), F_OK), "a run that could not start left a folder");
}

/* Weights so large that sums overflow, and a state whose numbers are not those of a run: no figure
   comes of them, and the run that was there stays. */
static void test_not_finite(void) {
    const char *path = scratch_path("best/train_state.safetensors");
    Model m;
    Safetensors state;
    Stored moments, log, best;
    Size n;
    IGPT(0, "", TINY "--steps 3 --out $S/sound");
    REQUIRE(!keep_model(&m, model_load(&m, scratch_path("sound"))));
    m.params[0] = (real)7e4;
    REQUIRE(!model_save(&m, scratch_path("wide"), F32));
    for (Size i = 0; i < m.n_params; i++)
        m.params[i] = (real)(i % 2 ? 1e25 : -1e25); // whose squares overflow in the first norm
    REQUIRE(!model_save(&m, scratch_path("huge"), F32));
    IGPT(1, "not finite", "eval --model $S/huge");
    for (Size i = 0; i < m.n_params; i++) m.params[i] = (real)3e38; // and whose sums do
    REQUIRE(!model_save(&m, scratch_path("huge"), F32));
    IGPT(1, "not finite", "sample --model $S/huge --out $S/drawn");
    IGPT(1, "not finite", "probe --model $S/huge --out $S/drawn");
    IGPT(1, "not finite", "eval --model $S/huge");
    IGPT(1, "too large for F16", "train --init $S/wide --f16 --overwrite --steps 3 --out $S/sound");
    IGPT(1, "sound: step 1, learning rate 0.004: the run is no longer finite (",
         "train --init $S/huge --overwrite --steps 3 --out $S/sound");
    check_holds(igpt_output, "Nothing has been saved; start anew with a lower --lr");
    IGPT(0, "step 3\n", "train --resume --quiet --out $S/sound");
    IGPT(0, "", "finetune --model $S/sound --out $S/best --steps 2 --batch 2 --quiet");
    REQUIRE(!safetensors_open(&state, path) && safetensors_find(&state, "moments", &moments) &&
            safetensors_find(&state, "rows", &log) && safetensors_find(&state, "best", &best));
    safetensors_close(&state);
    const uint8_t *bytes = read_bytes(path, &n);
    IGPT(1, "--steps 1: the run in", "finetune --resume --steps 1 --out $S/best");
    // a weight; the log's first step, its second row's loss of validation, the best step
    const Size places[] = {moments.end - 4, log.begin, log.begin + 9 * 8 + 6 * 8, best.begin};
    for (int i = 0; i < 4; i++) {
        uint8_t *changed = memcpy(zeros(n, 1), bytes, n);
        memset(changed + places[i], i == 2 ? 0x7f : 0xff, i ? 8 : 4); // 1.4e306, NaN
        write_bytes(path, changed, n);
        IGPT(1, i ? "not those of a run" : "moments is not finite",
             "finetune --resume --out $S/best");
    }
    remove(path);
    IGPT(1, "best holds a model: --overwrite replaces", "finetune --model $S/best --out $S/best");
    REQUIRE(!keep_model(&m, model_load(&m, scratch_path("best"))));
    for (Size i = m.tensors[m.n_tensors - 1].offset; i < m.n_params; i++) m.params[i] = (real)3e38;
    REQUIRE(!model_save(&m, scratch_path("best"), F32));
    IGPT(1, "loss is not finite", "eval --model $S/best");
}

/* The tensor of this name in scratch file `path` becomes one of another name. */
static void tensor_renamed(const char *path, const char *name, const char *to) {
    Size n;
    char *bytes = (char *)read_bytes(scratch_path("%s", path), &n), *at = bytes;
    while (at && at < bytes + n && memcmp(at, name, strlen(name))) at++;
    REQUIRE(at && at < bytes + n && strlen(to) == strlen(name));
    memcpy(at, to, strlen(to));
    write_bytes(scratch_path("%s", path), bytes, n);
}

/* A model without lm_head, as Hugging Face saves classifiers and bare models, has no loss. One
   whose config promises more than its file can hold takes no memory. */
static void test_models_in_part(void) {
    IGPT(0, "", TINY "--steps 2 --out $S/whole");
    IGPT(0, "", "finetune --model $S/whole --out $S/part --steps 2 --batch 2 --quiet");
    IGPT(0, "nats_per_pixel", "eval --model $S/part");
    double accuracy = printed("accuracy");
    tensor_renamed("part/model.safetensors", "\"lm_head.weight\"", "\"weight\"        ");
    IGPT(0, "class_nats", "eval --model $S/part");
    CHECK(printed("accuracy") == accuracy && !strstr(igpt_output, "_per_pixel"), "%s", igpt_output);
    tensor_renamed("whole/model.safetensors", "lm_head.weight", "other_h.weight");
    IGPT(1, "tensor lm_head.weight is missing", "eval --model $S/whole");
    tensor_renamed("whole/model.safetensors", "\"transformer.wte.weight\"",
                   "\"wte.weight\"            "); // by which one knows a bare model
    IGPT(1, "can neither draw nor be tested by its loss", "eval --model $S/whole");
    IGPT(0, "", "finetune --model $S/whole --gen-weight 0 --steps 1 --batch 2 --out $S/zero");
    CHECK(!strstr(igpt_output, "_per_pixel"), "%s", igpt_output);
    IGPT(1, "zero has no lm_head.weight, or all of it", "sample --model $S/zero");
    IGPT(1, "whole has no lm_head.weight", "sample --model $S/whole");
    IGPT(1, "whole has no lm_head.weight", "complete --model $S/whole");
    IGPT(0, "no lm_head.weight: it starts at zero",
         "train --init $S/whole --steps 1 --batch 2 --out $S/begun");
    static const char config[] = "{\"vocab_size\": 65536, \"n_positions\": 16, \"n_embd\": 1024, "
                                 "\"n_layer\": 1, \"n_head\": 1}";
    write_bytes(scratch_path("whole/config.json"), config, sizeof config - 1);
    char *zero = zeros(30 << 20, 1);
    REQUIRE(!rename(hand_made("{'a':{'dtype':'I8','shape':[31457280],'data_offsets':[0,31457280]}}",
                              zero, 30 << 20),
                    scratch_path("whole/model.safetensors")));
    IGPT(1, "too small for the model that its config promises",
         LIMITED(200000) "eval --model $S/whole");
}

/* --overwrite is killed in the middle of its first save, over a run and over a model from
   elsewhere; then comes nothing, or what makes it worse; then --resume. Whatever lies there in the
   end is the old one or the new one, and all of it. */
static void test_killed_overwrite(void) {
#    define FEW "--n-embd 4 --n-px 2 --batch 2 --steps 2 --data $S/few --quiet --threads 1 "
#    define ANEW "./igpt_fault train --n-layer 2 --n-head 2 --n-vocab 3 --seed 2 " FEW
    static const char *const few[] = {"pictures few/a 3 10", "pictures few/b 3 90", NULL};
    static const char *const cuts[] = {"flush 1",  "rename 1", "remove 9", "remove 10",
                                       "rename 3", "rename 5", "rename 6"};
    static const char *const thens[] = {
        "true",
        "IGPT_FAULT='remove 9 kill' ./igpt_fault train --resume --out $S/cut",
        "IGPT_FAULT='rename 2 kill' ./igpt_fault train --resume --out $S/cut",
        ANEW "--overwrite --palette $S/nowhere --out $S/cut",
        "IGPT_FAULT='remove 2 kill' " ANEW "--seed 3 --overwrite --out $S/cut",
        "IGPT_FAULT='remove 6 kill' " ANEW "--seed 3 --overwrite --out $S/cut",
        "IGPT_FAULT='open 1 once' " ANEW "--overwrite --palette $S/nowhere --out $S/cut",
    };
    static const char *const names[] = {"model.safetensors", "preprocessor_config.json",
                                        "config.json",       "samples.png",
                                        "progress.png",      "loss.svg"};
    enum { CUTS = sizeof cuts / sizeof *cuts, THENS = sizeof thens / sizeof *thens };
    int renewed = 0;
    files_make(1, few);
    IGPT(0, "", "train --n-layer 1 --n-head 1 --n-vocab 2 " FEW "--out $S/cut_run");
    IGPT(0, "",
         "--version & wait; cp -r $S/cut_run $S/cut_model; rm $S/cut_model/*state* "
         "$S/cut_model/log.csv");
    IGPT(0, "", "--version & wait; " ANEW "--out $S/cut_new");
    for (int i = 0; i < 2 * CUTS * THENS; i++) {
        const char *old = i % 2 ? "cut_run" : "cut_model";
        IGPT(0, "",
             "--version & wait; rm -rf $S/cut; cp -r $S/%s $S/cut; IGPT_FAULT='%s kill' " ANEW
             "--overwrite --out $S/cut; [ $? = 137 ] || exit; %s; true",
             old, cuts[i / 2 % CUTS], thens[i / 2 / CUTS]);
        if (!access(scratch_path("cut/config.json"), F_OK)) {
            int new = is_same_file("cut_new", "cut", "config.json"); // of another step, perhaps
            CHECK(is_same_file(old, "cut", names[0]) == !new, "the weights are of the other run");
            for (int k = 1; k < 3; k++) check_same_file(new ? "cut_new" : old, "cut", names[k]);
        }
        IGPT(0, "",
             "--version & wait; ./igpt_fault train --resume --quiet --threads 1 --out $S/cut; "
             "echo resumed: $?");
        int is_new = is_same_file("cut_new", "cut", names[0]);
        CHECK(strstr(igpt_output, is_new || i % 2 ? "resumed: 0" : "resumed: 1"), "%s",
              igpt_output);
        for (int k = 0; k < 6; k++) check_same_file(is_new ? "cut_new" : old, "cut", names[k]);
        renewed += is_new;
    }
    CHECK(renewed == 2 * 5 * THENS, "%d: until the state has its name the old one stays", renewed);
}

/* Files, folders and names as they come: as large as a header does not say, with escape sequences,
   of other classes than before, of the run before. */
static void test_strange_names(void) {
    static const char *const files[] = {"pictures two/a 4 0", "pictures two/b 4 90", NULL};
    char data[4096];
    files_make(1, files);
    IGPT(0, "", TINY "--steps 2 --data $S/two --out $S/plain");
    IGPT(0, "", "finetune --model $S/plain --data $S/two --steps 2 --batch 2 --quiet --out $S/ab");
    REQUIRE(!rename(scratch_path("two/b"), scratch_path("two/c")) &&
            !access(scratch_path("plain/samples.png"), R_OK));
    IGPT(1, "other classes than the run", "finetune --resume --out $S/ab");
    IGPT(0, "", TINY "--objective bert --overwrite --steps 2 --data $S/two --out $S/plain");
    CHECK(access(scratch_path("plain/samples.png"), F_OK), "samples of the run before were left");
    REQUIRE(realpath("data/emoji", data) && !symlink(data, scratch_path("red\033[31m")));
    IGPT(0, "red?[31m: pictures", "train " SMALL "--steps 1 --data $S/red* --out $S/red1");
    // Folders beside records do not matter: one that is not there, one that is shut.
    files_make(8, record_sets);
    REQUIRE(!symlink("nowhere", scratch_path("c100/test")) &&
            !mkdir(scratch_path("c100/train"), 0));
    IGPT(0, "images 1\n", "eval --model data/emoji-ar --data $S/c100");
    REQUIRE(!rmdir(scratch_path("c100/train")));
    // 1 GiB behind a header that says otherwise
    write_bytes(scratch_path("a.ppm"), "P6 1 1 255\nabc", 14);
    static const char *const vast[] = {"idx idx/train-images-idx3-ubyte 0x803 0 32768 32768 0",
                                       NULL};
    REQUIRE(!truncate(scratch_path("a.ppm"), 1 << 30) &&
            !truncate(scratch_path("idx/train-images-idx3-ubyte"), 1 << 30));
    IGPT(0, "completions",
         LIMITED(200000) "complete --threads 1 --model "
                         "data/emoji-ar --n 1 --image $S/a.ppm --out $S/drawn");
    IGPT(1, "expected a header of 16 and 4 records",
         LIMITED(200000) "eval --threads 1 --model "
                         "data/emoji-ar --data $S/idx");
    files_make(8, vast); // pictures of 1 GiB each, but none of them
    IGPT(1, "4 labels for 0 pictures",
         LIMITED(200000) "eval --threads 1 --model "
                         "data/emoji-ar --data $S/idx");
}

/* Signals as they come in practice. A pair that a shell or timeout sends ends a run after its step,
   as one does; one that nohup ignores and a reader that has gone, not at all. What --overwrite has
   shown pictures of is what is gone on with. */
static void test_signals(void) {
    static const char begun[] = UNTIL "[ -e $S/heard/train_state.safetensors ]" THEN;
    static const char again[] = "train --resume --steps 40 --quiet --threads 1 --out $S/heard";
#    define HEARD TINY "--threads 1 --overwrite --steps 300000 --eval-every 20 --out $S/heard "
    IGPT(1, "--resume --out", HEARD "%s kill -TERM $!; kill -TERM $!; kill -HUP $!; wait $!",
         begun);
    CHECK(count_words(igpt_output, "stopping after this step; press again to end now") == 1, "%s",
          igpt_output);
    IGPT(0, "step 40\n", "%s 2>&1 | true; ${IGPT:-./igpt} %s", again, again);
    remove(scratch_path("heard/train_state.safetensors"));
    IGPT(1, "--resume --out",
         "--version & wait; trap '' HUP; ${IGPT:-./igpt} " HEARD
         "%s kill -HUP $!; sleep 0.2; kill -INT $!; kill -0 $! && kill -TERM $!; wait $!",
         begun);
    IGPT(0, "step 3\n", TINY "--threads 1 --overwrite --steps 3 --out $S/heard");
    remove(scratch_path("heard/samples.png"));
    IGPT(0, "", HEARD "--save-every 200000 " UNTIL "[ -e $S/heard/samples.png ]" THEN "kill -9 $!");
    IGPT(0, "resuming at step 20 of 21", "train --resume --steps 21 --threads 1 --out $S/heard");
}

/* Run the command twice in ./igpt_fault (data/fault.h), side by side: call number n of a kind
   fails, once and from then on. It must say so in one sentence, leave no .part file, and in its
   folder a state and a model that can be read; but where --overwrite has given up the model of
   before, there may be none. Returns whether the call came at all. */
static int fault_came(const char *command, const char *kind, long n) {
    enum { SPARED = 77 };
    static const char *const modes[] = {"once", "on"};
    char line[1024], output[2048];
    int came = 0, before = n_kept, folder = !strcmp(kind, "folder"); // then there is none yet
    FILE *f[2];
    for (int k = 0; k < 2; k++) {
        snprintf(
            line, sizeof line,
            "S='%s'; O=$S/%s; %s; IGPT_FAULT='%s %ld %s' ./igpt_fault %s --quiet --threads 1 "
            "2>&1 >$S/%s.txt; s=$?; for f in $O/*.part $O/*/*.part; do [ -e $f ] && echo left $f; "
            "done; exit $s",
            scratch, modes[k], folder ? "rm -rf $O/new; O=$O/new/deep" : "cp $S/seed/* $O", kind, n,
            modes[k], command, modes[k]);
        if (!(f[k] = popen(line, "r"))) abort();
    }
    for (int k = 0; k < 2; k++) {
        Model m;
        Safetensors state;
        output[fread(output, 1, sizeof output - 1, f[k])] = 0;
        int is = pclose(f[k]), status = WEXITSTATUS(is); // some systems take is' address
        int told = status == 1 && !strncmp(output, "igpt: ", 6);
        if (status != SPARED) came = 1; // the names in a folder of records are not needed: status 0
        CHECK((told || status == SPARED || (status == 0 && strstr(command, "mnist"))) &&
                  count_words(output, "\n") == told && !strstr(output, "Success"),
              "status %d: %s %ld %s: %s: %s", status, kind, n, modes[k], command, output);
        int given_up = strstr(command, "--overwrite") &&
                       access(scratch_path("%s/config.json", modes[k]), F_OK);
        int bad = model_load(&m, scratch_path(modes[k]));
        if (!bad) model_free(&m);
        bad = (bad && !given_up) ||
              safetensors_open(&state, scratch_path("%s/train_state.safetensors", modes[k]));
        CHECK(!bad, "%s %ld %s: %s: %s", kind, n, modes[k], command, error_text());
        safetensors_close(&state);
    }
    while (n_kept > before) free(kept[--n_kept]);
    return came;
}

/* n is counted up until the call does not come any more; from 20 on in steps of a tenth, since
   every byte of some files is a call. */
static void test_faults(void) {
#    define SEED "--n-layer 1 --n-embd 4 --n-head 2 --n-px 2 --batch 2 --steps 2 --data $S/few "
    static const char *const files[] = {"pictures few/a 3 10",
                                        "pictures few/b 3 90",
                                        "idx mnist/train-images-idx3-ubyte 0x803 2 4 4 32",
                                        "idx mnist/train-labels-idx1-ubyte 0x801 2 0 0 2",
                                        "idx mnist/t10k-images-idx3-ubyte 0x803 2 4 4 32",
                                        "idx mnist/t10k-labels-idx1-ubyte 0x801 2 0 0 2",
                                        "folder once",
                                        "folder on",
                                        NULL};
    static const char *const kinds[] = {"alloc", "open",  "read",   "write", "flush",
                                        "sync",  "close", "rename", "folder"};
    static const char *const commands[] = {
        "train --overwrite " SEED "--palette $S/seed/preprocessor_config.json --out $O",
        ("train --overwrite --init $S/seed --f16 --recompute --steps 1 --batch 1 --data $S/few "
         "--out $O"),
        "finetune --overwrite --model $S/seed --steps 2 --batch 2 --data $S/few --out $O",
        "probe --model $S/seed --data $S/few --concat 2 --features $O/features --out $O",
        "sample --model $S/seed --n 1 --out $O",
        "complete --model $S/seed --n 1 --image $S/few/a/000.pgm --out $O",
        "palette --data $S/few --n-px 2 --n-vocab 3 --out $O/colours",
        "eval --model $S/seed --data $S/few",
        "eval --model $S/seed --data $S/mnist",
        "info --model $S/seed",
        "train --resume --steps 3 --out $O", // the last one: not into a new folder
    };
    enum { RUNS = sizeof kinds / sizeof *kinds * (sizeof commands / sizeof *commands) - 1 };
    REQUIRE(!access("./igpt_fault", X_OK));
    files_make(1, files);
    IGPT(0, "", "train " SEED "--n-vocab 3 --out $S/seed");
    for (int i = 0; i < RUNS; i++)
        for (long n = 1; fault_came(commands[i / 9], kinds[i % 9], n);) n += n < 20 ? 1 : n / 10;
}

/* What data/fuzz.c's inputs once did to the readers: none of them may end it. */
static void test_strange_files(void) {
    IGPT(0, " refused\n", "--version & wait; exec ./fuzz_replay data/fuzz/*");
    CHECK(!strstr(igpt_output, " 0 read") && !strstr(igpt_output, " 0 refused"), "one-sided");
}

/* data/example.c, with igpt linked and as a part of it: two models in one process draw what each
   draws alone, and both programs the same. */
static void test_example(void) {
    Model m;
    REQUIRE(!random_model(&m, (Config){6, 9, 16, 2, 2, 0, OBJECTIVE_AR}, "example"));
    IGPT(0, "",
         "--version & wait; for by in linked included; do "
         "./example_$by $S/example $S/a1$by data/emoji-ar $S/b1$by $S/example $S/a2$by && "
         "./example_$by data/emoji-ar $S/b2$by || exit; done; "
         "for file in $S/a[12]* $S/b[12]*; do "
         "cmp $file ${file%%[12]*}1linked || exit; done");
}
#endif // ALONE

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"gradients of every layer; attention fast and plain", test_layer_gradients},
    {"gradients of every tensor, every objective; PyTorch's fixture", test_gradients},
    {"every step of PyTorch's trace", test_trace},
    {"gradcheck of someone else's gradients", test_gradcheck},
    {"gradients add up, a missing label adds none", test_gradients_add_up},
    {"exp against libm", test_exp},
    {"random numbers", test_random},
    {"matmul, all transposes and odd sizes, rows by themselves", test_matmul},
    {"PyTorch's numbers: three steps of Adam", test_pytorch_adam},
    {"same bits for 1, 2, 3 and 5 threads, and recomputed", test_same_bits},
    {"callers side by side, each with its own memory", test_callers_side_by_side},
    {"learning rate", test_learning_rate},
    {"published parameter counts", test_parameter_counts},
    {"initial values", test_initial_values},
    {"BERT's masks", test_bert_mask},
    {"k-means against brute force", test_kmeans},
    {"k-means: a start in every cluster", test_kmeans_start},
    {"palette of few colours", test_palette_few_colours},
    {"quantisation and its ties", test_quantisation},
    {"cached sampling gives forward's logits", test_cache_is_forward},
    {"samples do not depend on the split", test_samples_do_not_depend_on_the_split},
    {"sampling frequencies", test_sampling_frequencies},
    {"the trained model draws what it drew", test_trained_model},
    {"features: scales, pooling, threads; in the trace PyTorch", test_features},
    {"L-BFGS finds known optima", test_lbfgs},
    {"logistic regression finds the optimum", test_logistic_optimum},
    {"probe of separable and of random labels", test_probe},
    {"resize, exact", test_resize_exact},
    {"resize, edges", test_resize_edges},
    {"data sets of records", test_records},
    {"data sets of records: refusals", test_records_refused},
    {"PPM and PGM", test_image_read},
    {"folders of pictures", test_folders},
    {"augmentation", test_augment},
    {"labels split", test_labels_split},
    {"JSON, grammar", test_json_grammar},
    {"JSON, values", test_json_values},
    {"JSON, limits and files", test_json_limits},
    {"safetensors: refusals", test_safetensors_refused},
    {"safetensors: what is allowed", test_safetensors_allowed},
    {"safetensors, dtypes", test_safetensors_dtypes},
    {"safetensors, round trip", test_safetensors_round_trip},
    {"safetensors, writing refused", test_safetensors_write_refused},
    {"model directory, written and read", test_model_directory},
    {"foreign directories are refused by name", test_foreign_directories},
    {"a model from transformers, and saved again for it", test_hugging_face_model},
    {"PNG", test_png},
    {"pictures for the terminal", test_terminal},
    {"SVG chart", test_chart},
#ifndef ALONE
    {"command line: mistakes and help", test_command_line},
    {"command line: train learns, eval, sample", test_train_eval_sample},
    {"command line: stopped and resumed", test_resume},
    {"command line: resumed, extremes", test_resume_extremes},
    {"command line: probe", test_command_probe},
    {"command line: complete", test_complete},
    {"command line: BERT", test_bert_commands},
    {"command line: finetune", test_finetune},
    {"command line: palette", test_palette_command},
    {"command line: nothing lost", test_nothing_lost},
    {"command line: refused by name", test_refused_by_name},
    {"command line: not finite", test_not_finite},
    {"command line: a model without head, or promised", test_models_in_part},
    {"command line: --overwrite killed", test_killed_overwrite},
    {"command line: signals", test_signals},
    {"command line: strange names and files", test_strange_names},
    {"command line: every fault", test_faults},
    {"command line: strange files of data/fuzz", test_strange_files},
    {"command line: another program, two models", test_example},
#endif
};

#ifdef ALONE
static int run_build(const char *program, int *passed) { return (void)program, (void)passed, 1; }
static int scratch_make(const char *base) {
    snprintf(scratch, sizeof scratch, "%s/igpt-tests", base && *base ? base : ".");
    return mkdir(scratch, 0777);
}
static int scratch_remove(void) { return 0; }
#else
/* Run another build of this program; returns how many of its tests failed. */
static int run_build(const char *program, int *passed) {
    char line[512];
    int failed = 1;
    FILE *f = popen(program, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "%d passed, %d failed", passed, &failed) != 2) fputs(line, stdout);
    return !f || pclose(f) > 0 ? failed + !failed : failed; // it ended badly
}

static int scratch_make(const char *base) {
    snprintf(scratch, sizeof scratch, "%s/igpt-XXXXXX", base && *base ? base : P_tmpdir);
    return !mkdtemp(scratch); // refuses a name that was cut, too
}

static int scratch_remove(void) {
    char line[160];
    snprintf(line, sizeof line, "rm -rf '%s'", scratch);
    return system(line);
}
#endif

/* Words choose tests by their names. An argument with a slash is another build of this program,
   to be run first: its counts are added. ./igpt is run by the build in float alone. */
int main(int argc, char **argv) {
    int passed = 0, failed = 0, words = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
#ifndef ALONE
    signal(SIGINT, SIG_DFL); // which a shell lets what it starts in the background ignore
    signal(SIGHUP, SIG_DFL); // nohup
#endif
    if (argc > 1 && !strcmp(argv[1], "--table"))
        return argc > 2 ? gradcheck(argv[2], stdout) : (check_fixture(1), failures_here > 0);
    for (int i = 1; i < argc; i++) {
        int also = 0;
        if (!strchr(argv[i], '/') && ++words) continue;
        failed += run_build(argv[i], &also);
        passed += also;
    }
    if (scratch_make(getenv("TMPDIR"))) return perror(scratch), 1;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        int wanted = !words;
        for (int k = 1; k < argc; k++) wanted |= strstr(tests[i].name, argv[k]) != NULL;
        if (!strncmp(tests[i].name, "command line", 12)) wanted &= !strcmp(build, "float");
        if (!wanted) continue;
        failures_here = 0;
        printf("%-6s: %s\n", build, tests[i].name);
        tests[i].run();
        threads_set(0);
        while (n_kept) free(kept[--n_kept]);
        while (n_kept_models) model_free(&kept_models[--n_kept_models]);
        safetensors_close(&fixture);
        if (failures_here) failed++, printf("    FAILED\n");
        else passed++;
    }
    if (scratch_remove()) failed++;
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}

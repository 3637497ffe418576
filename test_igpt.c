/* test_igpt.c - the tests of igpt; `make test` builds them in float and in double and runs both.
   SPDX-License-Identifier: MIT

   Mathematics is proved twice: central differences check every gradient against the code's own
   forward pass, and data/fixture holds PyTorch's numbers for a tiny model. What depends on memory
   layout, threads or files is compared to the last bit. */

#define _XOPEN_SOURCE 700 // POSIX 2008, and P_tmpdir
#include "igpt.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the harness ---------------------------------------------------------------------------- */

enum { IS_DOUBLE = sizeof(real) == 8 };

static int failures_here; // of the test that runs

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            failures_here++;                                                                       \
            printf("    %s:%d: %s: ", __FILE__, __LINE__, #condition);                             \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

/* Files that tests write go to a fresh folder where the system keeps such. */
static char scratch[128];

static int scratch_make(void) {
    const char *base = getenv("TMPDIR");
    size_t n = (size_t)snprintf(scratch, sizeof scratch, "%s/igpt-XXXXXX",
                                base && *base ? base : P_tmpdir);
    return n < sizeof scratch && mkdtemp(scratch) ? 0 : -1;
}

static int scratch_remove(void) {
    char line[160];
    snprintf(line, sizeof line, "rm -rf '%s'", scratch);
    return system(line);
}

static char *scratch_path(const char *name) {
    static char paths[8][256];
    static int turn;
    turn = (turn + 1) % 8;
    snprintf(paths[turn], sizeof paths[turn], "%s/%s", scratch, name);
    return paths[turn];
}

static void write_bytes(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    CHECK(f && fwrite(bytes, 1, n, f) == n, "cannot write %s", path);
    if (f) fclose(f);
}

/* The whole file, zero-terminated, for the caller to free; NULL where there is none. */
static uint8_t *read_bytes(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    *n = 0;
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *bytes = calloc(*n + 1, 1);
    *n = fread(bytes, 1, *n, f);
    fclose(f);
    return bytes;
}

static void fill(real *x, size_t n, uint64_t stream, double scale) {
    for (size_t i = 0; i < n; i++) x[i] = (real)(scale * random_normal(7, stream, i));
}

static real *filled(size_t n, uint64_t stream, double scale) {
    real *x = NULL; // on a cache line, as attention's scratch must be
    if (posix_memalign((void **)&x, 64, (n ? n : 1) * sizeof *x)) abort();
    fill(x, n, stream, scale);
    return x;
}

/* ---- 1 numbers ------------------------------------------------------------------------------ */

static void test_exp(void) {
    double worst = 0;
    for (double x = -86.5; x < 88.7; x += 0.00137) {
        double is = (double)real_exp((real)x), wanted = exp((double)(real)x);
        double ulps = fabs(is - wanted) / (wanted * (IS_DOUBLE ? 0x1p-52 : 0x1p-23));
        worst = ulps > worst ? ulps : worst;
    }
    CHECK(worst <= 2, "%.2f ulp from libm", worst);
    CHECK(real_exp(0) == 1, "e^0 = %.9g", (double)real_exp(0));
    CHECK(isinf(real_exp(1000)) && real_exp(-1000) == 0, "no limits");
    CHECK(isinf(real_exp((real)INFINITY)) && real_exp((real)-INFINITY) == 0, "infinity is lost");
    CHECK(isnan(real_exp((real)NAN)), "NaN is lost");
}

static void test_random(void) {
    enum { N = 100000 };
    double sum = 0, squares = 0, uniform = 0;
    for (int i = 0; i < N; i++) {
        double x = random_normal(1, 2, (uint64_t)i), u = random_uniform(1, 3, (uint64_t)i);
        CHECK(u >= 0 && u < 1, "uniform %g", u);
        sum += x;
        squares += x * x;
        uniform += u;
    }
    CHECK(fabs(sum / N) < 0.02 && fabs(squares / N - 1) < 0.02, "mean %g, variance %g", sum / N,
          squares / N);
    CHECK(fabs(uniform / N - 0.5) < 0.01, "uniform mean %g", uniform / N);
    CHECK(random_bits(1, 2, 3) != random_bits(2, 1, 3) &&
              random_bits(1, 2, 3) != random_bits(1, 3, 2),
          "seed, stream and counter are mixed up");
    int order[100], seen[100] = {0};
    for (int i = 0; i < 100; i++) order[i] = i;
    random_shuffle(order, 100, 5, 6);
    int moved = 0;
    for (int i = 0; i < 100; i++) {
        seen[order[i]]++;
        moved += order[i] != i;
    }
    for (int i = 0; i < 100; i++) CHECK(seen[i] == 1, "%d appears %d times", i, seen[i]);
    CHECK(moved > 80, "only %d moved", moved);
}

/* ---- 2 matmul ------------------------------------------------------------------------------- */

/* One product with given transposes against three plain loops; odd strides leave room around. */
static void check_matmul(int M, int N, int K, int transpose_a, int transpose_b, int accumulate) {
    size_t lda = (size_t)(transpose_a ? M : K) + 3, ldb = (size_t)(transpose_b ? K : N) + 1;
    size_t ldc = (size_t)N + 2;
    real *a = filled(lda * (size_t)(transpose_a ? K : M), 1, 1);
    real *b = filled(ldb * (size_t)(transpose_b ? N : K), 2, 1);
    real *c = filled(ldc * (size_t)M, 3, 1), *before = filled(ldc * (size_t)M, 3, 1);
    size_t a_row = transpose_a ? 1 : lda, a_col = transpose_a ? lda : 1;
    size_t b_row = transpose_b ? 1 : ldb, b_col = transpose_b ? ldb : 1;
    matmul(M, N, K, a, a_row, a_col, b, b_row, b_col, c, ldc, accumulate);
    double worst = 0;
    for (int i = 0; i < M; i++)
        for (size_t j = 0; j < ldc; j++) {
            double sum = accumulate || j >= (size_t)N ? before[(size_t)i * ldc + j] : 0;
            for (int k = 0; k < K && j < (size_t)N; k++)
                sum += (double)a[(size_t)i * a_row + (size_t)k * a_col] *
                       (double)b[(size_t)k * b_row + j * b_col];
            double error = fabs(sum - (double)c[(size_t)i * ldc + j]);
            if (!(error <= worst)) worst = error;
        }
    CHECK(worst < (IS_DOUBLE ? 1e-12 : 1e-5) * sqrt(K) * 4, "%d x %d x %d, a%s b%s%s: off by %g", M,
          N, K, transpose_a ? "'" : "", transpose_b ? "'" : "", accumulate ? ", +=" : "", worst);
    free(a);
    free(b);
    free(c);
    free(before);
}

static void test_matmul(void) {
    static const int sizes[][3] = {{1, 1, 1},      {1, 7, 5},    {2, 33, 9},      {13, 31, 17},
                                   {14, 32, 64},   {15, 33, 65}, {29, 65, 300},   {32, 100, 257},
                                   {33, 100, 257}, {64, 12, 16}, {100, 48, 513},  {173, 90, 40},
                                   {7, 1100, 3},   {300, 1, 20}, {520, 530, 300}, {16, 9000, 600}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int flags = 0; flags < 8; flags++)
            check_matmul(sizes[s][0], sizes[s][1], sizes[s][2], flags & 1, flags >> 1 & 1,
                         flags >> 2);
}

/* A row's bits must not depend on which rows are computed with it: sampling relies on it. */
static void test_matmul_rows_alike(void) {
    enum { M = 50, N = 70, K = 600 };
    real *a = filled(M * K, 1, 1), *b = filled(K * N, 2, 1);
    real *all = calloc(M * N, sizeof *all), *some = calloc(M * N, sizeof *some);
    matmul(M, N, K, a, K, 1, b, N, 1, all, N, 0);
    for (int threads = 1; threads <= 5; threads++) { // the few rows are shared out in several ways
        threads_set(threads);
        for (int rows = 1; rows <= 33; rows += 4) {
            matmul(rows, N, K, a, K, 1, b, N, 1, some, N, 0);
            CHECK(!memcmp(all, some, sizeof(real) * (size_t)rows * N), "%d rows differ, %d threads",
                  rows, threads);
        }
    }
    threads_set(0);
    free(a);
    free(b);
    free(all);
    free(some);
}

/* ---- 3 layers ------------------------------------------------------------------------------- */

/* Central differences: perturb `count` entries of x[0..n) and compare with the gradient. loss()
   recomputes everything from x. Returns the relative error: the largest difference over the largest
   gradient. In float only double tests are sharp, so these run in double alone. */
typedef double Loss(void *context);

static double gradient_error(real *x, size_t n, const real *gradient, Loss *loss, void *context) {
    double worst = 0, largest = 1e-12;
    size_t stride =
        n > 400 ? n / 400 + 1 : 1; // all of a small tensor, every so many of a large one
    for (size_t i = 0; i < n; i += stride) {
        double h = 1e-5, values[4];
        real was = x[i];
        static const int steps[4] = {1, -1, 2, -2};
        for (int s = 0; s < 4; s++) {
            x[i] = was + (real)(h * steps[s]);
            values[s] = loss(context);
        }
        x[i] = was;
        double numeric = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h);
        double error = fabs(numeric - (double)gradient[i]);
        if (!(error <= worst)) worst = error;
        largest = fmax(largest, fabs((double)gradient[i]));
    }
    return worst / largest;
}

enum { B_ = 2, T_ = 37, D_ = 12, H_ = 3, K_ = 7, ROWS = B_ * T_ };

/* A layer under test: inputs, and a random direction by which its output is made a scalar. */
typedef struct {
    real *x, *gain, *out, *weights, *inv, *lse, *scratch;
    uint16_t tokens[ROWS];
    uint8_t mask[ROWS];
    const uint8_t *use_mask;
    int causal, width;
    int B, T, d, H; // of attention
} LayerTest;

static double weighted(const LayerTest *t, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)t->out[i] * (double)t->weights[i];
    return sum;
}

static double rms_loss(void *context) {
    LayerTest *t = context;
    rms_forward(t->out, t->inv, t->x, t->gain, ROWS, D_);
    return weighted(t, ROWS * D_);
}

static void test_rms_gradient(void) {
    LayerTest t = {.x = filled(ROWS * D_, 1, 1),
                   .gain = filled(D_, 2, 1),
                   .out = filled(ROWS * D_, 3, 0),
                   .weights = filled(ROWS * D_, 4, 1),
                   .inv = filled(ROWS, 5, 0)};
    real *dx = filled(ROWS * D_, 6, 0), *dgain = filled(D_, 7, 0);
    real *partial = filled(rms_partials(ROWS) * D_, 8, 1);
    rms_loss(&t);
    rms_backward(dx, dgain, partial, t.weights, t.x, t.gain, t.inv, ROWS, D_);
    double ex = gradient_error(t.x, ROWS * D_, dx, rms_loss, &t);
    double eg = gradient_error(t.gain, D_, dgain, rms_loss, &t);
    CHECK(ex < 1e-7 && eg < 1e-7, "x %g, gain %g", ex, eg);
    real *lists[] = {t.x, t.gain, t.out, t.weights, t.inv, dx, dgain, partial};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) free(lists[i]);
}

static double embed_loss(void *context) { // x is wte, gain is wpe
    LayerTest *t = context;
    embed_forward(t->out, t->tokens, t->use_mask, t->x, t->gain, B_, T_, D_, K_);
    return weighted(t, ROWS * D_);
}

static void test_embed_gradient(void) {
    LayerTest t = {.x = filled((K_ + 1) * D_, 1, 1),
                   .gain = filled(T_ * D_, 2, 1),
                   .out = filled(ROWS * D_, 3, 0),
                   .weights = filled(ROWS * D_, 4, 1)};
    for (int i = 0; i < ROWS; i++) {
        t.tokens[i] = (uint16_t)(random_bits(1, 1, (uint64_t)i) % K_);
        t.mask[i] = random_bits(1, 2, (uint64_t)i) % 3 == 0;
    }
    for (int bert = 0; bert < 2; bert++) {
        real *dwte = filled((K_ + 1) * D_, 5, 0), *dwpe = filled(T_ * D_, 6, 0);
        t.use_mask = bert ? t.mask : NULL;
        embed_backward(dwte, dwpe, t.weights, t.tokens, t.use_mask, B_, T_, D_, K_);
        double e1 = gradient_error(t.x, (K_ + 1) * D_, dwte, embed_loss, &t);
        double e2 = gradient_error(t.gain, T_ * D_, dwpe, embed_loss, &t);
        CHECK(e1 < 1e-7 && e2 < 1e-7, "%s: wte %g, wpe %g", bert ? "BERT" : "AR", e1, e2);
        free(dwte);
        free(dwpe);
    }
    free(t.x);
    free(t.gain);
    free(t.out);
    free(t.weights);
}

/* Attention in several bands, the last of them not full: small heads, and one wider than a band. */
enum { SHAPES = 2, T_MOST = 150, D_MOST = 40 };

static double attention_loss(void *context) {
    LayerTest *t = context;
    attention_forward(t->out, t->lse, t->x, t->B, t->T, t->d, t->H, t->causal, t->scratch,
                      threads_get());
    return weighted(t, t->B * t->T * t->d);
}

static LayerTest attention_setup(int shape) {
    LayerTest t = {.B = 2, .T = T_MOST, .d = 12, .H = 3};
    if (shape) t = (LayerTest){.B = 1, .T = 77, .d = D_MOST, .H = 1};
    size_t n = (size_t)t.B * (size_t)t.T * (size_t)t.d;
    t.x = filled(3 * n, 1, 1);
    t.out = filled(n, 3, 0);
    t.weights = filled(n, 4, 1);
    t.lse = filled((size_t)(t.B * t.H * t.T), 5, 0);
    t.scratch = filled((size_t)threads_get() * attention_scratch(t.T, t.d / t.H), 6, 1);
    return t;
}

static void attention_done(LayerTest *t) {
    free(t->x);
    free(t->out);
    free(t->weights);
    free(t->lse);
    free(t->scratch);
}

static void test_attention_gradient(void) {
    for (int test = 0; test < 2 * SHAPES; test++) {
        LayerTest t = attention_setup(test / 2);
        size_t n = 3 * (size_t)t.B * (size_t)t.T * (size_t)t.d;
        real *dqkv = filled(n, 7, 1); // backward must overwrite this
        t.causal = test % 2;
        attention_loss(&t);
        attention_backward(dqkv, t.weights, t.x, t.out, t.lse, t.B, t.T, t.d, t.H, t.causal,
                           t.scratch, threads_get());
        double error = gradient_error(t.x, n, dqkv, attention_loss, &t);
        CHECK(error < 1e-7, "%d heads of %d, %s: %g", t.H, t.d / t.H, t.causal ? "causal" : "full",
              error);
        free(dqkv);
        attention_done(&t);
    }
}

/* Against softmax(Q K' / sqrt(hs)) V written out, row by row. */
static void test_attention_plain(void) {
    for (int test = 0; test < 2 * SHAPES; test++) {
        LayerTest t = attention_setup(test / 2);
        t.causal = test % 2;
        attention_loss(&t);
        int T = t.T, d = t.d, H = t.H, hs = d / H;
        double worst = 0, worst_lse = 0;
        for (int task = 0; task < t.B * H * T; task++) {
            int b = task / (H * T), h = task / T % H, i = task % T, n = t.causal ? i + 1 : T;
            const real *image = t.x + b * T * 3 * d + h * hs, *q = image + i * 3 * d;
            double p[T_MOST], sum = 0, out[D_MOST] = {0};
            for (int j = 0; j < n; j++) {
                const real *k = image + j * 3 * d + d;
                p[j] = 0;
                for (int c = 0; c < hs; c++) p[j] += (double)q[c] * (double)k[c];
                sum += p[j] = exp(p[j] / sqrt(hs));
            }
            for (int j = 0; j < n; j++) {
                const real *v = image + j * 3 * d + 2 * d;
                for (int c = 0; c < hs; c++) out[c] += p[j] / sum * (double)v[c];
            }
            const real *row = t.out + (b * T + i) * d + h * hs;
            for (int c = 0; c < hs; c++) worst = fmax(worst, fabs(out[c] - (double)row[c]));
            worst_lse = fmax(worst_lse, fabs(log(sum) - (double)t.lse[task]));
        }
        CHECK(worst < (IS_DOUBLE ? 1e-13 : 2e-6) && worst_lse < (IS_DOUBLE ? 1e-13 : 2e-6),
              "%d heads of %d, causal %d: out off by %g, lse by %g", H, hs, t.causal, worst,
              worst_lse);
        attention_done(&t);
    }
}

static double gelu_loss(void *context) {
    LayerTest *t = context;
    gelu_forward(t->out, t->x, ROWS, D_);
    return weighted(t, ROWS * D_);
}

static void test_gelu_gradient(void) {
    LayerTest t = {.x = filled(ROWS * D_, 1, 3),
                   .out = filled(ROWS * D_, 3, 0),
                   .weights = filled(ROWS * D_, 4, 1)};
    real *du = filled(ROWS * D_, 4, 1), *again = filled(ROWS * D_, 5, 0);
    gelu_loss(&t);
    gelu_backward(du, again, t.x, ROWS, D_);
    CHECK(!memcmp(again, t.out, ROWS * D_ * sizeof(real)), "backward's g is not forward's");
    double error = gradient_error(t.x, ROWS * D_, du, gelu_loss, &t);
    CHECK(error < 1e-7, "%g", error);
    free(t.x);
    free(t.out);
    free(t.weights);
    free(du);
    free(again);
}

static double cross_entropy_loss(void *context) { // gain is nll
    LayerTest *t = context;
    double sum = 0;
    memcpy(t->out, t->x, ROWS * K_ * sizeof(real));
    softmax_loss_forward(t->out, t->gain, t->tokens, ROWS, K_);
    for (int r = 0; r < ROWS; r++) sum += (double)t->gain[r] * (double)t->weights[r];
    return sum;
}

static void test_cross_entropy_gradient(void) {
    LayerTest t = {.x = filled(ROWS * K_, 1, 2),
                   .gain = filled(ROWS, 2, 0),
                   .out = filled(ROWS * K_, 3, 0),
                   .weights = filled(ROWS, 4, 1)};
    for (int i = 0; i < ROWS; i++) t.tokens[i] = (uint16_t)(random_bits(1, 1, (uint64_t)i) % K_);
    cross_entropy_loss(&t);
    for (int r = 0; r < ROWS; r++) {
        double sum = 0;
        for (int k = 0; k < K_; k++) sum += (double)t.out[r * K_ + k];
        CHECK(fabs(sum - 1) < 1e-6, "probabilities of row %d add up to %g", r, sum);
    }
    real *gradient = filled(ROWS * K_, 5, 0);
    memcpy(gradient, t.out, ROWS * K_ * sizeof(real));
    softmax_loss_backward(gradient, t.tokens, t.weights, ROWS, K_);
    double error = gradient_error(t.x, ROWS * K_, gradient, cross_entropy_loss, &t);
    CHECK(error < 1e-7, "%g", error);
    free(t.x);
    free(t.gain);
    free(t.out);
    free(t.weights);
    free(gradient);
}

/* ---- 4 model, 5 objectives, 6 optimiser ----------------------------------------------------- */

static const Config small = {
    .n_px = 5, .n_vocab = 9, .n_embd = 12, .n_head = 3, .n_layer = 3, .n_class = 4};

typedef struct {
    Model model;
    Activations *acts;
    Batch batch;
    double gen, clf;
} Whole;

static double whole_loss(void *context) {
    Whole *w = context;
    Losses l = objective(&w->model, w->acts, &w->batch, w->gen, w->clf, 1, NULL);
    return w->gen * l.gen + w->clf * l.clf;
}

static void random_batch(uint16_t *tokens, uint8_t *mask, int *labels, const Config *c, int B) {
    int T = c->n_px * c->n_px;
    for (int i = 0; i < B * T; i++) {
        tokens[i] = (uint16_t)(random_bits(3, 1, (uint64_t)i) % (uint64_t)c->n_vocab);
        mask[i] = i % T == 2 || random_bits(3, 2, (uint64_t)i) % 5 == 0;
    }
    for (int b = 0; b < B; b++) labels[b] = (int)(random_bits(3, 3, (uint64_t)b) % 4);
}

/* The small model with weights far from the zeros of its heads, and a batch for it. */
static void small_model(Model *m, uint16_t *tokens, uint8_t *mask, int *labels, int B) {
    random_batch(tokens, mask, labels, &small, B);
    CHECK(!model_init(m, small), "%s", error_text());
    fill(m->params, m->n_params, 9, 0.3);
}

/* Every tensor of a whole model, for every objective: AR and BERT, alone and with the class head.
   */
static void test_model_gradients(void) {
    enum { B = 2, T = 25 };
    uint16_t tokens[B * T];
    uint8_t mask[B * T];
    int labels[B];
    random_batch(tokens, mask, labels, &small, B);
    for (int kind = 0; kind < 6; kind++) {
        int bert = kind % 2;
        Config config = small;
        config.objective = bert ? OBJECTIVE_BERT : OBJECTIVE_AR;
        Whole w = {.gen = kind / 2 == 1 ? 0 : 1, .clf = kind / 2 ? 0.7 : 0};
        w.batch = (Batch){B, tokens, bert ? mask : NULL, labels};
        CHECK(!model_init(&w.model, config), "%s", error_text());
        fill(w.model.params, w.model.n_params, 9, 0.3); // far from the zeros of the heads
        w.acts = activations_new(&config, B, KEEP_ALL);
        real *grads = filled(w.model.n_params, 1, 0);
        objective(&w.model, w.acts, &w.batch, w.gen, w.clf, 1, grads);
        for (int i = 0; i < w.model.n_tensors; i++) {
            const Tensor *t = &w.model.tensors[i];
            double error = gradient_error(w.model.params + t->offset, t->rows * t->cols,
                                          grads + t->offset, whole_loss, &w);
            CHECK(error < 1e-7, "%s, gen %g, clf %g: %s: %g", bert ? "BERT" : "AR", w.gen, w.clf,
                  t->name, error);
        }
        free(grads);
        free(w.acts);
        model_free(&w.model);
    }
}

/* Gradients from kept activations and from blocks run again: the same bits. */
static void test_recompute(void) {
    enum { B = 2, T = 25 };
    uint16_t tokens[B * T];
    uint8_t mask[B * T];
    int labels[B];
    Model m;
    small_model(&m, tokens, mask, labels, B);
    real *grads[2];
    for (int i = 0; i < 2; i++) {
        Activations *acts = activations_new(&small, B, i ? KEEP_INPUTS : KEEP_ALL);
        grads[i] = filled(m.n_params, 1, 0);
        Batch batch = {B, tokens, NULL, labels};
        objective(&m, acts, &batch, 1, 1, 0.5, grads[i]);
        free(acts);
    }
    CHECK(!memcmp(grads[0], grads[1], m.n_params * sizeof(real)), "gradients differ");
    CHECK(activations_bytes(&small, B, KEEP_INPUTS) < activations_bytes(&small, B, KEEP_ALL),
          "no memory is saved");
    free(grads[0]);
    free(grads[1]);
    model_free(&m);
}

/* Gradients add up over passes: two halves of a batch give the whole's. */
static void test_accumulation(void) {
    enum { B = 4, T = 25 };
    uint16_t tokens[B * T];
    uint8_t mask[B * T];
    int labels[B];
    Model m;
    small_model(&m, tokens, mask, labels, B);
    Activations *acts = activations_new(&small, B, KEEP_ALL);
    real *whole = filled(m.n_params, 1, 0), *halves = filled(m.n_params, 1, 0);
    Batch batch = {B, tokens, NULL, labels};
    objective(&m, acts, &batch, 1, 1, 1.0 / B, whole);
    for (int i = 0; i < 2; i++) {
        Batch half = {B / 2, tokens + i * B / 2 * T, NULL, labels + i * B / 2};
        objective(&m, acts, &half, 1, 1, 1.0 / B, halves);
    }
    double worst = 0;
    for (size_t i = 0; i < m.n_params; i++)
        worst = fmax(worst, fabs((double)whole[i] - (double)halves[i]));
    CHECK(worst < (IS_DOUBLE ? 1e-14 : 1e-6), "off by %g", worst);
    free(whole);
    free(halves);
    free(acts);
    model_free(&m);
}

/* PyTorch's numbers. */
typedef struct {
    Safetensors file;
    Model model;
    Activations *acts;
    uint16_t tokens[48];
    uint8_t mask[48];
    int labels[3];
} Fixture;

static const double fixture_tolerance = IS_DOUBLE ? 1e-9 : 1e-4;

/* A tensor of a file, for the caller to free. */
static real *stored_tensor(Safetensors *file, const char *name) {
    const Stored *s = safetensors_find(file, name);
    real *x = s ? calloc((size_t)s->count, sizeof *x) : NULL;
    CHECK(x && !safetensors_read(file, s, x), "%s: %s", name, error_text());
    return x;
}

static real *fixture_tensor(Fixture *f, const char *prefix, const char *name) {
    char full[128];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return stored_tensor(&f->file, full);
}

static void fixture_open(Fixture *f, int objective_kind) {
    Config c = {.n_px = 4,
                .n_vocab = 12,
                .n_embd = 16,
                .n_head = 2,
                .n_layer = 2,
                .n_class = 5,
                .objective = objective_kind};
    CHECK(!safetensors_open(&f->file, "data/fixture/tiny.safetensors"), "%s", error_text());
    CHECK(!model_init(&f->model, c), "%s", error_text());
    f->acts = activations_new(&c, 3, KEEP_ALL);
    for (int i = 0; i < f->model.n_tensors; i++) {
        const Tensor *t = &f->model.tensors[i];
        real *w = fixture_tensor(f, "", t->name);
        memcpy(f->model.params + t->offset, w, t->rows * t->cols * sizeof *w);
        free(w);
    }
    real *tokens = fixture_tensor(f, "input.", "tokens"),
         *mask = fixture_tensor(f, "input.", "mask");
    real *labels = fixture_tensor(f, "input.", "labels");
    for (int i = 0; i < 48; i++) {
        f->tokens[i] = (uint16_t)tokens[i];
        f->mask[i] = mask[i] != 0;
    }
    for (int i = 0; i < 3; i++) f->labels[i] = (int)labels[i];
    free(tokens);
    free(mask);
    free(labels);
}

static void fixture_close(Fixture *f) {
    safetensors_close(&f->file);
    model_free(&f->model);
    free(f->acts);
}

static void check_near(Fixture *f, const char *prefix, const char *name, const real *is, size_t n) {
    real *wanted = fixture_tensor(f, prefix, name);
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)is[i] - (double)wanted[i]);
        if (!(error <= worst)) worst = error;
    }
    CHECK(worst < fixture_tolerance, "%s%s: off by %g", prefix, name, worst);
    free(wanted);
}

static void check_gradients(Fixture *f, const char *prefix, const real *grads) {
    for (int i = 0; i < f->model.n_tensors; i++) {
        const Tensor *t = &f->model.tensors[i];
        check_near(f, prefix, t->name, grads + t->offset, t->rows * t->cols);
    }
}

static void check_generative(const char *prefix, int kind) {
    Fixture f;
    char grad[32];
    fixture_open(&f, kind);
    Batch batch = {3, f.tokens, kind == OBJECTIVE_BERT ? f.mask : NULL, NULL};
    real *grads = filled(f.model.n_params, 1, 0);
    model_forward(&f.model, f.acts, f.tokens, batch.mask, 3);
    check_near(&f, prefix, "logits", model_logits(&f.model, f.acts, 3), 3 * 16 * 12);
    real loss = (real)(objective(&f.model, f.acts, &batch, 1, 0, 1.0 / 3, grads).gen / 3);
    check_near(&f, prefix, "loss", &loss, 1);
    snprintf(grad, sizeof grad, "%sgrad.", prefix);
    check_gradients(&f, grad, grads);
    free(grads);
    fixture_close(&f);
}

static void test_pytorch_ar(void) {
    check_generative("ar.", OBJECTIVE_AR);
}

static void test_pytorch_bert(void) {
    check_generative("bert.", OBJECTIVE_BERT);
}

static void test_pytorch_joint(void) {
    Fixture f;
    fixture_open(&f, OBJECTIVE_AR);
    Batch batch = {3, f.tokens, NULL, f.labels};
    real *grads = filled(f.model.n_params, 1, 0);
    Losses losses = objective(&f.model, f.acts, &batch, 1, 1, 1.0 / 3, grads);
    real gen = (real)(losses.gen / 3), clf = (real)(losses.clf / 3);
    check_near(&f, "joint.", "gen_loss", &gen, 1);
    check_near(&f, "joint.", "clf_loss", &clf, 1);
    check_gradients(&f, "joint.grad.", grads);
    free(grads);
    fixture_close(&f);
}

static void test_pytorch_adam(void) {
    Fixture f;
    fixture_open(&f, OBJECTIVE_AR);
    Batch batch = {3, f.tokens, NULL, f.labels};
    size_t n = f.model.n_params;
    real *grads = filled(n, 1, 0), *first = filled(n, 1, 0), *second = filled(n, 1, 0);
    for (int step = 1; step <= 3; step++) {
        objective(&f.model, f.acts, &batch, 1, 1, 1.0 / 3, grads);
        adam_step(f.model.params, grads, first, second, n, step, 0.01);
        CHECK(grads[0] == 0 && grads[n - 1] == 0, "gradients are not cleared");
    }
    check_gradients(&f, "adam3.", f.model.params);
    free(grads);
    free(first);
    free(second);
    fixture_close(&f);
}

static void test_learning_rate(void) {
    CHECK(fabs(learning_rate(0, 100, 10, 1) - 0.1) < 1e-12, "starts at %g",
          learning_rate(0, 100, 10, 1));
    CHECK(learning_rate(9, 100, 10, 1) == 1, "peak is %g", learning_rate(9, 100, 10, 1));
    CHECK(fabs(learning_rate(55, 100, 10, 1) - 0.5) < 1e-12, "half way %g",
          learning_rate(55, 100, 10, 1));
    CHECK(learning_rate(99, 100, 10, 1) < 1e-3, "ends at %g", learning_rate(99, 100, 10, 1));
    CHECK(learning_rate(0, 10, 0, 1) == 1, "no warm-up gives %g", learning_rate(0, 10, 0, 1));
}

/* The published sizes, in whole millions, at 32 x 32 pixels and 512 colours. */
static void test_parameter_counts(void) {
    static const struct {
        int L, d, H, millions;
    } sizes[] = {{24, 512, 8, 76}, {36, 1024, 8, 455}, {48, 1536, 16, 1362}, {60, 3072, 16, 6801}};
    for (int i = 0; i < 4; i++) {
        Model m;
        Config c = {.n_px = 32,
                    .n_vocab = 512,
                    .n_embd = sizes[i].d,
                    .n_head = sizes[i].H,
                    .n_layer = sizes[i].L};
        CHECK(!model_list(&m, c), "%s", error_text());
        CHECK(m.n_params / 1000000 == (size_t)sizes[i].millions, "%zu instead of %d million",
              m.n_params, sizes[i].millions);
        model_free(&m);
    }
    Config bad = small;
    bad.n_head = 5;
    CHECK(config_check(&bad) && strstr(error_text(), "n_embd"), "n_head 5: %s", error_text());
}

static void test_initial_values(void) {
    Model m;
    Config c = {.n_px = 8, .n_vocab = 64, .n_embd = 64, .n_head = 4, .n_layer = 4, .n_class = 3};
    CHECK(!model_init(&m, c), "%s", error_text());
    model_randomise(&m, 1);
    for (int i = 0; i < m.n_tensors; i++) {
        const Tensor *t = &m.tensors[i];
        double squares = 0, wanted = strstr(t->name, "ln_")           ? 1
                                     : strstr(t->name, "wpe")         ? 0.01
                                     : strstr(t->name, "c_attn")      ? 1.0 / 8
                                     : strstr(t->name, "attn.c_proj") ? 1.0 / 16
                                     : strstr(t->name, "lm_head") || strstr(t->name, "score")
                                         ? 0
                                         : 0.02;
        for (size_t j = 0; j < t->rows * t->cols; j++)
            squares += (double)m.params[t->offset + j] * (double)m.params[t->offset + j];
        double rms = sqrt(squares / (double)(t->rows * t->cols));
        CHECK(fabs(rms - wanted) <= 0.06 * wanted, "%s: %g instead of %g", t->name, rms, wanted);
    }
    model_free(&m);
}

/* Train a few steps from the same start and return the parameters. */
static real *trained_params(const Config *c, int threads, int steps, size_t *n) {
    enum { B = 3 };
    Model m;
    uint16_t tokens[3 * 144];
    uint8_t mask[3 * 144];
    int labels[B];
    threads_set(threads);
    random_batch(tokens, mask, labels, c, B);
    CHECK(!model_init(&m, *c), "%s", error_text());
    model_randomise(&m, 1);
    Activations *acts = activations_new(c, B, KEEP_ALL);
    *n = m.n_params;
    real *grads = filled(*n, 1, 0), *first = filled(*n, 1, 0), *second = filled(*n, 1, 0);
    for (int step = 1; step <= steps; step++) {
        Batch batch = {B, tokens, c->objective == OBJECTIVE_BERT ? mask : NULL, labels};
        objective(&m, acts, &batch, 1, 1, 1.0 / B, grads);
        adam_step(m.params, grads, first, second, *n, step, 0.01);
    }
    real *params = m.params;
    m.params = NULL;
    free(acts);
    free(grads);
    free(first);
    free(second);
    model_free(&m);
    return params;
}

static void test_same_bits_for_all_threads(void) {
    for (int kind = OBJECTIVE_AR; kind <= OBJECTIVE_BERT; kind++) {
        Config c = {.n_px = 12,
                    .n_vocab = 9,
                    .n_embd = 48,
                    .n_head = 3,
                    .n_layer = 2,
                    .n_class = 4,
                    .objective = kind};
        size_t n;
        real *one = trained_params(&c, 1, 4, &n);
        for (int threads = 2; threads <= 5; threads += threads == 3 ? 2 : 1) {
            real *several = trained_params(&c, threads, 4, &n);
            CHECK(!memcmp(one, several, n * sizeof(real)), "%d threads differ, objective %d",
                  threads, kind);
            free(several);
        }
        free(one);
    }
    threads_set(0);
}

/* ---- 5 objectives: masks and missing labels ------------------------------------------------- */

/* Each position is masked as often as asked for, no mask is empty, and each (seed, index) has its
   own, whatever was drawn before. */
static void test_bert_mask(void) {
    enum { T = 64, N = 4000 };
    uint8_t mask[T], again[T], other[T];
    int at[T] = {0}, all = 0, alike = 0;
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
        bert_mask(other, T, 0.15, 2, i);
        alike += !memcmp(mask, other, T);
        bert_mask(other, T, 0.15, 1, i + 1);
        alike += !memcmp(mask, other, T);
        bert_mask(again, T, 0.15, 1, i);
        CHECK(!memcmp(mask, again, T), "mask %d is not the same again", (int)i);
    }
    double rate = (double)all / (T * N), deviation = sqrt(0.15 * 0.85 / N); // of one position
    CHECK(fabs(rate - 0.15) < 5 * deviation / 8, "%g of the positions are masked", rate);
    for (int t = 0; t < T; t++)
        CHECK(fabs((double)at[t] / N - 0.15) < 5 * deviation, "position %d: %g", t,
              (double)at[t] / N);
    CHECK(alike == 0, "%d masks of other seeds or images are the same", alike);
    for (uint64_t i = 0; i < 200; i++) { // where most are drawn again
        bert_mask(mask, 2, 0.01, 1, i);
        CHECK(mask[0] + mask[1] > 0, "mask %d of two positions is empty", (int)i);
    }
}

/* A picture without a label adds nothing to L_CLF or its gradient. */
static void test_missing_label(void) {
    enum { B = 2, T = 25 };
    uint16_t tokens[B * T];
    uint8_t mask[B * T];
    int labels[B];
    Model m;
    small_model(&m, tokens, mask, labels, B);
    labels[1] = -1;
    Activations *acts = activations_new(&small, B, KEEP_ALL);
    real *both = filled(m.n_params, 1, 0), *one = filled(m.n_params, 1, 0);
    Batch batch = {2, tokens, NULL, labels}, first = {1, tokens, NULL, labels};
    double clf_both = objective(&m, acts, &batch, 0, 1, 1, both).clf;
    double clf_one = objective(&m, acts, &first, 0, 1, 1, one).clf, worst = 0;
    for (size_t i = 0; i < m.n_params; i++) worst = fmax(worst, fabs((double)(both[i] - one[i])));
    CHECK(clf_both > 0 && fabs(clf_both - clf_one) < 1e-5, "%g, alone %g", clf_both, clf_one);
    CHECK(worst < (IS_DOUBLE ? 1e-12 : 1e-5), "gradients are %g apart", worst);
    free(both);
    free(one);
    free(acts);
    model_free(&m);
}

/* ---- 7 palette ------------------------------------------------------------------------------ */

static double inertia_of(const uint8_t *rgb, size_t n, const real *palette,
                         const uint16_t *tokens) {
    double sum = 0;
    for (size_t i = 0; i < 3 * n; i++) {
        double c = ((double)palette[3 * tokens[i / 3] + i % 3] + 1) * 127.5 - rgb[i];
        sum += c * c;
    }
    return sum;
}

/* Few points: k-means' optimum is known by trying all partitions; the best of several seeds must
   reach it, and each result must be a fixed point of Lloyd's iteration. */
static void test_kmeans_brute_force(void) {
    enum { N = 9, K = 3 };
    uint8_t rgb[3 * N];
    for (int i = 0; i < 3 * N; i++) rgb[i] = (uint8_t)random_bits(4, 4, (uint64_t)i);
    double optimum = INFINITY, best = INFINITY;
    for (int code = 0; code < 19683; code++) { // 3^9 assignments
        double sums[K][4] = {{0}}, total = 0;
        int digits = code, owner[N];
        for (int i = 0; i < N; i++, digits /= 3) {
            owner[i] = digits % 3;
            for (int c = 0; c < 3; c++) sums[owner[i]][c] += rgb[3 * i + c];
            sums[owner[i]][3]++;
        }
        for (int i = 0; i < N; i++)
            for (int c = 0; c < 3; c++) {
                double away = rgb[3 * i + c] - sums[owner[i]][c] / sums[owner[i]][3];
                total += away * away;
            }
        if (total < optimum) optimum = total;
    }
    for (uint64_t seed = 0; seed < 20; seed++) {
        real palette[3 * K];
        uint16_t tokens[N];
        double inertia;
        CHECK(palette_build(palette, K, rgb, N, seed, PALETTE_ITERATIONS, &inertia) == K, "%s",
              error_text());
        CHECK(!palette_index(tokens, rgb, N, palette, K), "%s", error_text());
        CHECK(fabs(inertia_of(rgb, N, palette, tokens) - inertia) < 1e-3 * inertia,
              "inertia %g, but the palette gives %g", inertia, inertia_of(rgb, N, palette, tokens));
        CHECK(inertia > optimum * 0.9999, "seed %d: %g beats the optimum %g", (int)seed, inertia,
              optimum);
        if (inertia < best) best = inertia;
        for (int k = 0; k < K; k++)
            for (int c = 0; c < 3; c++) {
                double sum = 0, count = 0;
                for (int i = 0; i < N; i++)
                    if (tokens[i] == k) sum += rgb[3 * i + c], count++;
                CHECK(fabs(sum / count / 127.5 - 1 - (double)palette[3 * k + c]) < 1e-5,
                      "centre %d is not the mean of its pixels", k);
            }
    }
    CHECK(best < optimum * 1.0001, "the best of 20 is %g, the optimum %g", best, optimum);
}

static void test_palette_few_colours(void) {
    static const uint8_t rgb[] = {0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 255, 255, 255};
    real palette[3 * 8];
    double inertia = 1;
    CHECK(palette_build(palette, 8, rgb, 5, 1, PALETTE_ITERATIONS, &inertia) == 3,
          "three colours are there");
    CHECK(inertia == 0, "inertia %g", inertia);
    CHECK(palette_build(palette, 8, rgb, 0, 1, PALETTE_ITERATIONS, NULL) == -1,
          "no pixels, but a palette");
    uint8_t back[15];
    uint16_t tokens[5];
    palette_build(palette, 8, rgb, 5, 1, PALETTE_ITERATIONS, NULL);
    CHECK(!palette_index(tokens, rgb, 5, palette, 3), "%s", error_text());
    palette_colours(back, tokens, 5, palette);
    CHECK(!memcmp(back, rgb, 15), "colours do not come back");
}

/* A pixel as far from two colours goes to the first; and always to the nearest, by brute force. */
static void test_quantisation(void) {
    const real ties[] = {-1,
                         -1,
                         -1,
                         (real)(100 / 127.5 - 1),
                         -1,
                         -1,
                         (real)(50 / 127.5 - 1),
                         -1,
                         -1,
                         (real)(100 / 127.5 - 1),
                         -1,
                         -1};
    static const uint8_t rgb[] = {50, 0, 0, 100, 0, 0, 25, 0, 0, 0, 0, 0};
    uint16_t tokens[2000];
    CHECK(!palette_index(tokens, rgb, 4, ties, 4), "%s", error_text());
    CHECK(tokens[0] == 2 && tokens[1] == 1 && tokens[3] == 0, "%d %d %d", tokens[0], tokens[1],
          tokens[3]);
    const real even[] = {(real)-0.5, 0, 0, (real)0.5, 0, 0}; // grey 127.5 lies between bytes
    CHECK(!palette_index(tokens, (const uint8_t[]){127, 127, 127, 128, 128, 128}, 2, even, 2), " ");
    CHECK(tokens[0] == 0 && tokens[1] == 1, "%d %d", tokens[0], tokens[1]);
    const real same[] = {0, 0, 0, 0, 0, 0};
    CHECK(!palette_index(tokens, rgb, 1, same, 2) && tokens[0] == 0, "a tie gave %d", tokens[0]);

    enum { N = 2000, K = 300 };
    real *palette = filled(3 * K, 1, 0.5);
    uint8_t *pixels = calloc(3 * N, 1);
    for (int i = 0; i < 3 * N; i++) pixels[i] = (uint8_t)random_bits(1, 1, (uint64_t)i);
    CHECK(!palette_index(tokens, pixels, N, palette, K), "%s", error_text());
    for (int i = 0; i < N; i++) {
        double best = INFINITY, its = 0;
        for (int k = 0; k < K; k++) {
            double square = 0;
            for (int c = 0; c < 3; c++) {
                double away = pixels[3 * i + c] / 127.5 - 1 - (double)palette[3 * k + c];
                square += away * away;
            }
            if (square < best) best = square;
            if (k == tokens[i]) its = square;
        }
        CHECK(its <= best * (1 + 1e-5) + 1e-9, "pixel %d: %g instead of %g", i, its, best);
    }
    free(palette);
    free(pixels);
}

/* ---- 8 images ------------------------------------------------------------------------------- */

/* Make a folder below the scratch folder; returns its path. */
static char *image_folder(const char *name) {
    char *path = scratch_path(name);
    mkdir(path, 0777);
    return path;
}

/* n bytes that look random: what the pictures of test files are made of. */
static uint8_t *image_noise(size_t n) {
    uint8_t *bytes = malloc(n + 1);
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)random_bits(8, n, i);
    return bytes;
}

/* A file of n records of `size` bytes, record i's label i + first in byte label_at (-1: nowhere).
   Returns its bytes, for the caller to free. */
static uint8_t *write_records(const char *name, int n, int size, int label_at, int first) {
    uint8_t *bytes = image_noise((size_t)n * (size_t)size);
    for (int i = 0; i < n && label_at >= 0; i++) bytes[i * size + label_at] = (uint8_t)(i + first);
    write_bytes(scratch_path(name), bytes, (size_t)n * (size_t)size);
    return bytes;
}

/* An IDX file: the magic number, dims sizes, then n bytes of noise (labels: 0, 1, ...). */
static void write_idx(const char *name, unsigned magic, int dims, unsigned count, unsigned height,
                      unsigned width, size_t n) {
    unsigned header[] = {magic, count, height, width};
    uint8_t *bytes = malloc(16 + n), *noise = image_noise(n);
    size_t at = 0;
    for (int i = 0; i <= dims; i++)
        for (int shift = 24; shift >= 0; shift -= 8) bytes[at++] = (uint8_t)(header[i] >> shift);
    for (size_t i = 0; i < n; i++) bytes[at++] = dims == 1 ? (uint8_t)i : noise[i];
    write_bytes(scratch_path(name), bytes, at);
    free(bytes);
    free(noise);
}

static void write_text(const char *name, const char *text) {
    write_bytes(scratch_path(name), text, strlen(text));
}

/* Reading `name` must succeed: 1, or 0 and a failed check. */
static int check_read(Dataset *data, const char *name, int n_px) {
    int result = dataset_read(data, scratch_path(name), n_px);
    CHECK(result == 0, "%s: %s", name, error_text());
    return result == 0;
}

/* Reading `name` must fail with a sentence that has both words and leave the data set zeroed. */
static void check_refused(const char *name, int n_px, const char *word1, const char *word2) {
    Dataset data, zero;
    memset(&data, 1, sizeof data);
    memset(&zero, 0, sizeof zero);
    int result = dataset_read(&data, scratch_path(name), n_px);
    CHECK(result == -1, "%s was read", name);
    CHECK(strstr(error_text(), word1), "\"%s\" does not say \"%s\"", error_text(), word1);
    CHECK(strstr(error_text(), word2), "\"%s\" does not say \"%s\"", error_text(), word2);
    CHECK(memcmp(&data, &zero, sizeof data) == 0, "%s: the data set is not zeroed", name);
    if (result == 0) dataset_free(&data);
}

/* A grey picture's value as r, g and b. */
static void grey_to_rgb(const uint8_t *grey, uint8_t *rgb, int n) {
    for (int i = 0; i < 3 * n; i++) rgb[i] = grey[i / 3];
}

static void test_resize_exact_values(void) {
    static const struct {
        int from, to;
        uint8_t in[16], out[16];
    } cases[] = {
        // clang-format off
        {3, 2, {0, 90, 240, 0, 90, 240, 0, 90, 240}, {30, 190, 30, 190}},
        {3, 2, {0, 0, 0, 90, 90, 90, 240, 240, 240}, {30, 30, 190, 190}},
        {3, 2, {0, 0, 0, 0, 225, 0, 0, 0, 0}, {25, 25, 25, 25}},
        {4, 2, {1, 2, 0, 0, 2, 2, 1, 1, 8, 9, 255, 255, 9, 9, 255, 255}, {2, 1, 9, 255}},
        {4, 3, {0, 120, 60, 240, 0, 120, 60, 240, 0, 120, 60, 240, 0, 120, 60, 240},
         {30, 90, 195, 30, 90, 195, 30, 90, 195}},
        {4, 1, {0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16}, {8}},
        {2, 4, {0, 100, 0, 100}, {0, 25, 75, 100, 0, 25, 75, 100, 0, 25, 75, 100, 0, 25, 75, 100}},
        {2, 4, {0, 0, 160, 160},
         {0, 0, 0, 0, 40, 40, 40, 40, 120, 120, 120, 120, 160, 160, 160, 160}},
        {2, 3, {0, 100, 100, 200}, {0, 50, 100, 50, 100, 150, 100, 150, 200}},
        {1, 4, {7}, {7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7}},
        // clang-format on
    };
    for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
        int from = cases[k].from, to = cases[k].to;
        uint8_t in[48], want[48], out[48];
        grey_to_rgb(cases[k].in, in, from * from);
        grey_to_rgb(cases[k].out, want, to * to);
        CHECK(image_resize(in, from, from, out, to) == 0, "%s", error_text());
        for (int i = 0; i < 3 * to * to; i++)
            CHECK(out[i] == want[i], "case %zu, value %d: %d instead of %d", k, i, out[i], want[i]);
    }
}

/* Channel c of the picture n x n at output pixel (i, j) of px x px, from the definitions, in
   floating point. */
static double resize_reference(const uint8_t *rgb, int n, int px, int i, int j, int c) {
    double sum = 0, scale = (double)n / px;
    for (int y = 0; y < n; y++) {
        for (int x = 0; x < n; x++) {
            double wy, wx;
            if (px <= n) { // covered length of pixel y's [y, y + 1) and x's
                wy = fmax(0, fmin(y + 1, (i + 1) * scale) - fmax(y, i * scale)) / scale;
                wx = fmax(0, fmin(x + 1, (j + 1) * scale) - fmax(x, j * scale)) / scale;
            } else { // distance from the centre, once that is held inside the outer centres
                wy = fmax(0, 1 - fabs(fmin(fmax((i + 0.5) * scale - 0.5, 0), n - 1) - y));
                wx = fmax(0, 1 - fabs(fmin(fmax((j + 0.5) * scale - 0.5, 0), n - 1) - x));
            }
            sum += wy * wx * rgb[(y * n + x) * 3 + c];
        }
    }
    return sum;
}

static void test_resize_against_definition(void) {
    static const int sides[] = {14, 16, 24, 28, 32, 48, 64};
    uint8_t *rgb = image_noise(32 * 32 * 3), *out = malloc(64 * 64 * 3);
    for (size_t s = 0; s < sizeof sides / sizeof *sides; s++) {
        int px = sides[s];
        double worst = 0;
        CHECK(image_resize(rgb, 32, 32, out, px) == 0, "%s", error_text());
        for (int k = 0; k < px * px * 3; k++) {
            double want = resize_reference(rgb, 32, px, k / 3 / px, k / 3 % px, k % 3);
            worst = fmax(worst, fabs(out[k] - want));
        }
        CHECK(worst < 0.5 + 1e-9, "32 to %d: %.3f levels off, more than rounding", px, worst);
        if (px == 32) CHECK(memcmp(out, rgb, 32 * 32 * 3) == 0, "32 to 32 is no copy");
    }
    free(rgb);
    free(out);
}

static void test_resize_large_and_white(void) {
    size_t n = 3000; // the weights' sum must not overflow
    uint8_t *rgb = malloc(n * n * 3), out[7 * 7 * 3];
    memset(rgb, 255, n * n * 3);
    CHECK(image_resize(rgb, (int)n, (int)n, out, 7) == 0, "%s", error_text());
    for (size_t i = 0; i < sizeof out; i++) CHECK(out[i] == 255, "white became %d", out[i]);
    free(rgb);
}

static void test_resize_crops_the_centre(void) {
    uint8_t rgb[6 * 4 * 3], out[4 * 4 * 3];
    for (int i = 0; i < 6 * 4 * 3; i++) rgb[i] = (uint8_t)i;
    CHECK(image_resize(rgb, 6, 4, out, 4) == 0, "%s", error_text()); // wide: columns 1 to 4
    for (int y = 0; y < 4; y++)
        CHECK(memcmp(out + y * 12, rgb + (y * 6 + 1) * 3, 12) == 0, "row %d of the wide one", y);
    CHECK(image_resize(rgb, 4, 6, out, 4) == 0, "%s", error_text()); // high: rows 1 to 4
    CHECK(memcmp(out, rgb + 4 * 3, 48) == 0, "the high one");
    CHECK(image_resize(rgb, 2, 5, out, 2) == 0, "%s", error_text()); // odd: one above, two below
    CHECK(memcmp(out, rgb + 2 * 3, 12) == 0, "the odd one");
}

static void test_resize_refuses_bad_sizes(void) {
    static const int bad[][3] = {{0, 4, 2},     {4, 0, 2}, {-1, 4, 2},  {32769, 1, 1},
                                 {1, 32769, 1}, {4, 4, 0}, {4, 4, 257}, {4, 4, -3}};
    uint8_t rgb[48] = {0}, out[48];
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        CHECK(image_resize(rgb, bad[k][0], bad[k][1], out, bad[k][2]) == -1, "case %zu", k);
}

static void test_cifar10(void) {
    image_folder("c10");
    uint8_t *one = write_records("c10/data_batch_1.bin", 2, 3073, 0, 0);
    uint8_t *three = write_records("c10/data_batch_3.bin", 3, 3073, 0, 0);
    uint8_t *test = write_records("c10/test_batch.bin", 1, 3073, 0, 2);
    write_text("c10/batches.meta.txt", "\nwarm cat\r\n\n  \ndog\t\nowl");
    Dataset data;
    if (!check_read(&data, "c10", 32)) return;
    CHECK(data.train.n == 5 && data.test.n == 1 && data.train.px == 32, "%d + %d pictures",
          data.train.n, data.test.n);
    CHECK(data.n_class == 3 && !strcmp(data.class_names[0], "warm cat") &&
              !strcmp(data.class_names[1], "dog") && !strcmp(data.class_names[2], "owl"),
          "%d classes", data.n_class);
    static const int labels[] = {0, 1, 0, 1, 2};
    for (int i = 0; i < data.train.n; i++) {
        const uint8_t *record = i < 2 ? one + i * 3073 : three + (i - 2) * 3073;
        CHECK(data.train.labels[i] == labels[i], "label %d of picture %d", data.train.labels[i], i);
        for (int k = 0; k < 3072; k++)
            CHECK(data.train.rgb[i * 3072 + k] == record[1 + k % 3 * 1024 + k / 3], "picture %d",
                  i);
    }
    CHECK(data.test.labels[0] == 2 && data.test.rgb[1] == test[1 + 1024], "the test picture");
    dataset_free(&data);
    CHECK(!data.train.rgb && !data.class_names && !data.n_class, "not zeroed when freed");
    dataset_free(&data);
    free(one);
    free(three);
    free(test);
}

static void test_cifar100(void) {
    image_folder("c100");
    uint8_t *train = write_records("c100/train.bin", 3, 3074, 1, 97);
    free(write_records("c100/test.bin", 1, 3074, 1, 5));
    Dataset data;
    if (!check_read(&data, "c100", 16)) return;
    CHECK(data.n_class == 100 && !strcmp(data.class_names[99], "99"), "names without a file");
    CHECK(data.train.labels[2] == 99 && data.test.labels[0] == 5, "the fine labels");
    const uint8_t *red = train + 2 * 3074 + 2; // of the last picture: its first pixel covers four
    int mean = (red[0] + red[1] + red[32] + red[33] + 2) / 4;
    CHECK(data.train.rgb[2 * 768] == mean, "%d instead of %d", data.train.rgb[2 * 768], mean);
    dataset_free(&data);
    write_text("c100/fine_label_names.txt", "apple\nbaby\n");
    check_refused("c100", 16, "train.bin", "label 97");
    free(train);
}

static void test_stl10(void) {
    enum { SIZE = 3 * 96 * 96 };
    image_folder("stl");
    uint8_t *train = write_records("stl/train_X.bin", 2, SIZE, -1, 0);
    free(write_records("stl/train_y.bin", 2, 1, 0, 9));
    free(write_records("stl/test_X.bin", 1, SIZE, -1, 0));
    free(write_records("stl/test_y.bin", 1, 1, 0, 1));
    Dataset data;
    if (!check_read(&data, "stl", 96)) return;
    CHECK(data.train.n == 2 && data.train.labels[0] == 8 && data.train.labels[1] == 9 &&
              data.test.labels[0] == 0 && data.n_class == 10,
          "labels in the file start at 1");
    for (int k = 0; k < SIZE; k++) { // planes go down columns
        int y = k / 3 / 96, x = k / 3 % 96;
        CHECK(data.train.rgb[SIZE + k] == train[SIZE + k % 3 * 9216 + x * 96 + y], "byte %d", k);
    }
    dataset_free(&data);

    uint8_t *more = write_records("stl/unlabeled_X.bin", 3, SIZE, -1, 0);
    if (!check_read(&data, "stl", 96)) return;
    CHECK(data.train.n == 5 && data.test.n == 1, "%d + %d pictures", data.train.n, data.test.n);
    CHECK(data.train.labels[1] == 9 && data.train.labels[2] == -1 && data.train.labels[4] == -1,
          "the unlabelled ones have label -1");
    CHECK(data.train.rgb[4 * SIZE] == more[2 * SIZE], "the unlabelled ones come last");
    dataset_free(&data);
    free(write_records("stl/train_y.bin", 3, 1, 0, 1));
    check_refused("stl", 96, "train_y.bin: 3 labels", "train_X.bin has 2");
    free(write_records("stl/train_y.bin", 2, 1, 0, 0));
    check_refused("stl", 96, "train_y.bin: record 0", "label 0; the 10 classes are 1 to 10");
    free(train);
    free(more);
}

/* A whole IDX set: 4 training and 2 test pictures, 4 wide and 6 high. */
static void write_idx_set(const char *folder) {
    char name[64];
    image_folder(folder);
    snprintf(name, sizeof name, "%s/train-images-idx3-ubyte", folder);
    write_idx(name, 0x803, 3, 4, 6, 4, 96);
    snprintf(name, sizeof name, "%s/train-labels-idx1-ubyte", folder);
    write_idx(name, 0x801, 1, 4, 0, 0, 4);
    snprintf(name, sizeof name, "%s/t10k-images-idx3-ubyte", folder);
    write_idx(name, 0x803, 3, 2, 6, 4, 48);
    snprintf(name, sizeof name, "%s/t10k-labels-idx1-ubyte", folder);
    write_idx(name, 0x801, 1, 2, 0, 0, 2);
}

static void test_idx(void) {
    write_idx_set("idx");
    uint8_t *grey = image_noise(96);
    Dataset data;
    if (!check_read(&data, "idx", 4)) return;
    CHECK(data.train.n == 4 && data.test.n == 2 && data.n_class == 10, "%d + %d", data.train.n,
          data.test.n);
    CHECK(data.train.labels[3] == 3 && data.test.labels[1] == 1, "labels");
    for (int k = 0; k < 48; k++) // r = g = b, rows 1 to 4 of the third picture
        CHECK(data.train.rgb[2 * 48 + k] == grey[2 * 24 + 4 + k / 3], "value %d", k);
    dataset_free(&data);
    write_text("idx/class_names.txt", "shirt\nshoe\n");
    check_refused("idx", 4, "train-labels-idx1-ubyte: record 2", "the 2 classes");
    write_text("idx/class_names.txt", "\n\n");
    check_refused("idx", 4, "class_names.txt", "empty");
    free(grey);
}

static void test_idx_bad_headers(void) {
    const char *images = "idxbad/train-images-idx3-ubyte";
    write_idx_set("idxbad");
    write_idx(images, 0x802, 3, 4, 6, 4, 96);
    check_refused("idxbad", 4, "train-images-idx3-ubyte", "wrong magic number 0x00000802");
    write_idx(images, 0x803, 3, 5, 6, 4, 120);
    check_refused("idxbad", 4, "train-labels-idx1-ubyte: 4 labels", "has 5 pictures");
    write_idx(images, 0x803, 3, 4, 6, 4, 95);
    check_refused("idxbad", 4, "train-images-idx3-ubyte: truncated",
                  "111 bytes instead of the 112");
    write_idx(images, 0x803, 3, 4, 6, 4, 97);
    check_refused("idxbad", 4, "train-images-idx3-ubyte", "too long");
    write_idx(images, 0x803, 3, 4, 0, 4, 96);
    check_refused("idxbad", 4, "train-images-idx3-ubyte", "4 x 0 pixels");
    write_idx(images, 0x803, 3, 4, 6, 0xffffffff, 96);
    check_refused("idxbad", 4, "train-images-idx3-ubyte", "4294967295 x 6 pixels");
    write_idx(images, 0x803, 3, 0xffffffff, 32768, 32768, 96);
    check_refused("idxbad", 4, "train-images-idx3-ubyte", "4294967295 records");
    write_idx(images, 0x803, 3, 10000000, 32768, 32768, 96);
    check_refused("idxbad", 4, "train-images-idx3-ubyte", "truncated");
    write_idx(images, 0x803, 3, 0, 6, 4, 0);
    check_refused("idxbad", 4, "train-images-idx3-ubyte", "0 records");
    write_bytes(scratch_path(images), "\0\0\10\3\0", 5);
    check_refused("idxbad", 4, "train-images-idx3-ubyte: truncated", "header of 16 bytes");
    write_idx(images, 0x803, 3, 4, 6, 4, 96);
    write_idx("idxbad/t10k-labels-idx1-ubyte", 0x803, 1, 2, 0, 0, 2);
    check_refused("idxbad", 4, "t10k-labels-idx1-ubyte", "wrong magic number 0x00000803");
    remove(scratch_path("idxbad/t10k-labels-idx1-ubyte"));
    check_refused("idxbad", 4, "t10k-labels-idx1-ubyte", "No such file");
}

static void test_packed_files_are_named(void) {
    image_folder("packed");
    write_text("packed/train-images-idx3-ubyte.gz", "\37\213");
    check_refused("packed", 4, "train-images-idx3-ubyte", "run gunzip -k");
    write_idx_set("packed");
    remove(scratch_path("packed/t10k-images-idx3-ubyte"));
    write_text("packed/t10k-images-idx3-ubyte.gz", "\37\213");
    check_refused("packed", 4, "t10k-images-idx3-ubyte", "run gunzip -k");
}

static void test_dataset_refuses_bad_records(void) {
    image_folder("bad");
    check_refused("bad", 8, "bad: no data set found", "train-images-idx3-ubyte");
    check_refused("nowhere", 8, "nowhere", "no such folder");
    free(write_records("bad/data_batch_1.bin", 3, 3073, 0, 0));
    check_refused("bad", 8, "test_batch.bin", "No such file");
    mkdir(scratch_path("bad/test_batch.bin"), 0777);
    check_refused("bad", 8, "test_batch.bin", "it is a folder");
    rmdir(scratch_path("bad/test_batch.bin"));
    write_text("bad/test_batch.bin", "");
    check_refused("bad", 8, "test_batch.bin", "empty");
    free(write_records("bad/test_batch.bin", 1, 3072, 0, 0));
    check_refused("bad", 8, "test_batch.bin", "3072 bytes is no multiple of a record's 3073");
    free(write_records("bad/test_batch.bin", 2, 3073, 0, 9));
    check_refused("bad", 8, "test_batch.bin: record 1 (counted from 0)",
                  "label 10; the 10 classes are 0 to 9");
    free(write_records("bad/test_batch.bin", 2, 3073, 0, 0));
    check_refused("bad", 0, "n_px 0", "1 to 256");
    check_refused("bad", 257, "n_px 257", "1 to 256");
    free(write_records("bad/data_batch_5.bin", 1, 3074, 0, 0));
    check_refused("bad", 8, "data_batch_5.bin", "no multiple");
    remove(scratch_path("bad/data_batch_5.bin"));
    write_text("bad/batches.meta.txt", "");
    check_refused("bad", 8, "batches.meta.txt", "empty");
    write_text("bad/batches.meta.txt", "a\nb\n");
    check_refused("bad", 8, "data_batch_1.bin: record 2", "label 2; the 2 classes are 0 to 1");
    remove(scratch_path("bad/batches.meta.txt"));
    mkdir(scratch_path("bad/batches.meta.txt"), 0777);
    check_refused("bad", 8, "batches.meta.txt", "it is a folder");
}

static void test_dataset_refuses_two_formats(void) {
    image_folder("two");
    free(write_records("two/data_batch_1.bin", 1, 3073, 0, 0));
    free(write_records("two/test_batch.bin", 1, 3073, 0, 0));
    image_folder("two/cat");
    write_text("two/cat/a.ppm", "P6 1 1 255\nabc");
    check_refused("two", 8, "CIFAR-10", "PPM");
    remove(scratch_path("two/cat/a.ppm"));
    Dataset data;
    if (check_read(&data, "two", 8)) dataset_free(&data); // a sub-folder without pictures
    free(write_records("two/test.bin", 1, 3074, 1, 0));
    check_refused("two", 8, "CIFAR-10", "CIFAR-100");
}

static void test_image_read(void) {
    static const char *const same[] = {
        "P6\n2 2\n255\nabcdefghijkl",
        "P6 2 2 255 abcdefghijkl",
        "P6\r\n2\t2\v255\fabcdefghijkl",
        "P6# made by hand\n# 3 3\n 2 # width\n#\n2#height\n255\nabcdefghijkl",
        "P6 2 2 255#the line's end is the white space\nabcdefghijkl",
        "P6 02 2 0255\nabcdefghijklP6 1 1 255\nabc",
    };
    uint8_t rgb[12];
    char *path = scratch_path("same.ppm");
    for (size_t k = 0; k < sizeof same / sizeof *same; k++) {
        write_bytes(path, same[k], strlen(same[k]));
        CHECK(image_read(path, rgb, 2) == 0, "%s", error_text());
        CHECK(memcmp(rgb, "abcdefghijkl", 12) == 0, "case %zu: %.12s", k, (char *)rgb);
    }
    write_bytes(path, "P5 3 2 255\n\1\2\3\4\5\6", 17); // grey, cropped to its first two columns
    CHECK(image_read(path, rgb, 2) == 0, "%s", error_text());
    CHECK(memcmp(rgb, "\1\1\1\2\2\2\4\4\4\5\5\5", 12) == 0, "grey");
    write_bytes(path, "P6 1 1 255\n#12", 14); // after the header '#' is a pixel
    CHECK(image_read(path, rgb, 1) == 0 && rgb[0] == '#', "%s", error_text());
}

static void test_image_read_maxval(void) {
    uint8_t rgb[12];
    char *path = scratch_path("deep.ppm");
    write_bytes(path, "P6 1 1 65535\n\377\377\200\000\001\001", 19);
    CHECK(image_read(path, rgb, 1) == 0, "%s", error_text());
    CHECK(rgb[0] == 255 && rgb[1] == 128 && rgb[2] == 1, "%d %d %d", rgb[0], rgb[1], rgb[2]);
    write_bytes(path, "P5 1 1 256\n\001\000", 13);
    CHECK(image_read(path, rgb, 1) == 0 && rgb[2] == 255, "maxval 256: %d", rgb[2]);
    write_bytes(path, "P5 2 2 3\n\0\1\2\3", 13);
    CHECK(image_read(path, rgb, 2) == 0, "%s", error_text());
    CHECK(rgb[0] == 0 && rgb[3] == 85 && rgb[6] == 170 && rgb[9] == 255, "maxval 3");
    write_bytes(path, "P5 1 1 1\n\1", 10);
    CHECK(image_read(path, rgb, 1) == 0 && rgb[0] == 255, "maxval 1");
}

static void test_image_read_refuses(void) {
    static const char *const bad[][2] = {
        {"", "wrong magic number"},
        {"P", "wrong magic number"},
        {"P3 1 1 255 1 2 3", "wrong magic number"},
        {"P61 1 255 abc", "wrong magic number"},
        {"\211PNG\r\n", "wrong magic number"},
        {"P6", "wrong magic number"},
        {"P6 ", "width"},
        {"P6 0 1 255 abc", "width 0 is not 1 to 32768"},
        {"P6 32769 1 255 abc", "width 32769"},
        {"P6 1 -1 255 abc", "height"},
        {"P6 1 99999999999999999999999999 255 abc", "height"},
        {"P6 1 1 0 abc", "maxval 0 is not 1 to 65535"},
        {"P6 1 1 65536 abcdef", "maxval 65536"},
        {"P6 1 1 255abc", "white space"},
        {"P6 1 1", "height"},
        {"P6 1 1 255", "white space"},
        {"P6 1x1 255\nabc", "width"},
        {"P6 1 1 255\nab", "truncated, 2 bytes of pixels instead of 3"},
        {"P6 1 1 256\nabcde", "truncated"},
        {"P6 32768 32768 65535\nabc", "truncated"},
        {"P5 1 1 100\ne", "above maxval"},
        {"P6 1 1 # 255 abc", "maxval"},
    };
    uint8_t rgb[12];
    char *path = scratch_path("refused.ppm");
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        write_bytes(path, bad[k][0], strlen(bad[k][0]));
        CHECK(image_read(path, rgb, 1) == -1, "\"%s\" was read", bad[k][0]);
        CHECK(strstr(error_text(), "refused.ppm") && strstr(error_text(), bad[k][1]),
              "\"%s\" does not say \"%s\"", error_text(), bad[k][1]);
    }
    write_text("refused.ppm", "P6 1 1 255\nabc");
    CHECK(image_read(path, rgb, 257) == -1 && strstr(error_text(), "257"), "%s", error_text());
    remove(path);
    CHECK(image_read(path, rgb, 1) == -1 && strstr(error_text(), "refused.ppm"), "a missing file");
    CHECK(image_read(scratch, rgb, 1) == -1 && strstr(error_text(), "folder"), "a folder");
}

/* n grey pictures of one pixel, of values first, first + 1, ..., in the order of their names. */
static void write_pictures(const char *folder, int n, int first) {
    char name[64], text[32];
    image_folder(folder);
    for (int i = n - 1; i >= 0; i--) {
        snprintf(name, sizeof name, "%s/%03d.pgm", folder, i);
        int size = snprintf(text, sizeof text, "P5 1 1 255\n%c", first + i);
        write_bytes(scratch_path(name), text, (size_t)size);
    }
}

static void test_folder_of_splits(void) {
    image_folder("tree");
    image_folder("tree/train");
    image_folder("tree/test");
    image_folder("tree/val"); // neither train nor test: not looked at
    write_pictures("tree/train/owl", 2, 30);
    write_pictures("tree/train/Zebra", 1, 40);
    write_pictures("tree/train/ant", 3, 50);
    write_pictures("tree/test/owl", 1, 60);
    write_pictures("tree/test/ant", 1, 70);
    write_pictures("tree/train/.hidden", 1, 80);
    image_folder("tree/train/no pictures");
    write_text("tree/train/ant/.x.ppm", "not a picture");
    write_text("tree/train/ant/notes.txt", "not a picture");
    Dataset data;
    if (!check_read(&data, "tree", 1)) return;
    CHECK(data.n_class == 3 && !strcmp(data.class_names[0], "Zebra") &&
              !strcmp(data.class_names[1], "ant") && !strcmp(data.class_names[2], "owl"),
          "classes in strcmp order");
    static const int train[][2] = {{40, 0}, {50, 1}, {51, 1}, {52, 1}, {30, 2}, {31, 2}};
    CHECK(data.train.n == 6 && data.test.n == 2, "%d + %d", data.train.n, data.test.n);
    for (int i = 0; i < data.train.n && i < 6; i++)
        CHECK(data.train.rgb[3 * i] == train[i][0] && data.train.labels[i] == train[i][1],
              "picture %d: value %d, label %d", i, data.train.rgb[3 * i], data.train.labels[i]);
    CHECK(data.test.rgb[0] == 70 && data.test.labels[0] == 1 && data.test.labels[1] == 2, "test");
    dataset_free(&data);

    write_pictures("tree/test/emu", 1, 10);
    check_refused("tree", 1, "test/emu", "no training pictures");
    remove(scratch_path("tree/test/emu/000.pgm"));
    write_text("tree/train/top.ppm", "P6 1 1 255\nabc");
    check_refused("tree", 1, "train/top.ppm", "beside the classes");
    remove(scratch_path("tree/train/top.ppm"));
    write_text("tree/train/ant/001.pgm", "P5 1 1 255\n");
    check_refused("tree", 1, "train/ant/001.pgm", "truncated");
}

static void test_folder_without_test(void) {
    image_folder("half");
    image_folder("half/train");
    write_pictures("half/train/owl", 2, 30);
    check_refused("half", 1, "half/test", "No such file");
    image_folder("half/test");
    check_refused("half", 1, "half", "0 for testing");
}

static void test_folder_is_split_by_itself(void) {
    image_folder("single");
    write_pictures("single/a", 40, 0);
    write_pictures("single/b", 3, 100); // 15 % of 3 is less than half a picture: still one
    write_pictures("single/c", 1, 200); // its only picture is needed for training
    Dataset data, again;
    if (!check_read(&data, "single", 1)) return;
    if (!check_read(&again, "single", 1)) return;
    int count[3] = {0}, seen[256] = {0};
    for (int i = 0; i < data.test.n; i++) count[data.test.labels[i]]++;
    CHECK(data.train.n == 37 && count[0] == 6 && count[1] == 1 && count[2] == 0,
          "%d for training, %d, %d, %d for testing", data.train.n, count[0], count[1], count[2]);
    for (int i = 0; i < data.train.n; i++) seen[data.train.rgb[3 * i]]++;
    for (int i = 0; i < data.test.n; i++) seen[data.test.rgb[3 * i]]++;
    for (int v = 0; v < 256; v++)
        CHECK(seen[v] == (v < 40 || (v >= 100 && v < 103) || v == 200), "picture %d: %d times", v,
              seen[v]);
    CHECK(again.test.n == data.test.n && again.train.n == data.train.n &&
              !memcmp(again.test.rgb, data.test.rgb, (size_t)data.test.n * 3) &&
              !memcmp(again.train.labels, data.train.labels, (size_t)data.train.n * sizeof(int)),
          "another split the second time");
    CHECK(data.test.rgb[0] != 0 || data.test.rgb[3 * 5] != 5, "the first ones instead of random");
    dataset_free(&data);
    dataset_free(&again);
}

static void test_folder_without_classes(void) {
    Dataset data;
    write_pictures("flat", 20, 0);
    if (!check_read(&data, "flat", 2)) return;
    CHECK(data.n_class == 0 && !data.class_names && !data.train.labels && !data.test.labels,
          "%d classes", data.n_class);
    CHECK(data.train.n == 17 && data.test.n == 3 && data.train.px == 2, "%d + %d", data.train.n,
          data.test.n);
    dataset_free(&data);
    write_pictures("alone", 1, 0);
    check_refused("alone", 2, "alone", "1 pictures for training and 0 for testing");
}

static void test_flip(void) {
    static const uint16_t in[9] = {1, 2, 3, 4, 5, 6, 7, 8, 511},
                          want[9] = {3, 2, 1, 6, 5, 4, 511, 8, 7};
    uint16_t out[9], back[9];
    image_flip(in, out, 3);
    image_flip(out, back, 3);
    CHECK(memcmp(out, want, sizeof out) == 0, "not mirrored");
    CHECK(memcmp(back, in, sizeof in) == 0, "twice is not the same again");
}

static void test_crop_padded(void) {
    uint16_t in[16], out[16];
    for (int i = 0; i < 16; i++) in[i] = (uint16_t)(100 + i);
    image_crop_padded(in, out, 4, 0, 0, 0);
    CHECK(memcmp(out, in, sizeof in) == 0, "no padding, no change");
    image_crop_padded(in, out, 4, 1, 1, 1);
    CHECK(memcmp(out, in, sizeof in) == 0, "the middle is the picture");
    // columns and rows of the picture padded by 3: 3 2 1 0 1 2 3 2 1 0
    static const int line[] = {3, 2, 1, 0, 1, 2, 3, 2, 1, 0};
    for (int dy = 0; dy <= 6; dy++) {
        for (int dx = 0; dx <= 6; dx++) {
            image_crop_padded(in, out, 4, 3, dy, dx);
            for (int i = 0; i < 16; i++) {
                int want = 100 + 4 * line[dy + i / 4] + line[dx + i % 4];
                CHECK(out[i] == want, "(%d, %d): %d instead of %d", dy, dx, out[i], want);
            }
        }
    }
}

/* A set of n pictures of 2 x 2 tokens, which number them; classes 0 1 2 0 1 2 ..., every tenth
   without. */
static Images numbered_images(int n) {
    Images set = {.n = n,
                  .px = 2,
                  .tokens = calloc((size_t)n * 4, 2),
                  .labels = calloc((size_t)n, sizeof(int))};
    for (int i = 0; i < n; i++) {
        for (int t = 0; t < 4; t++) set.tokens[4 * i + t] = (uint16_t)(4 * i + t);
        set.labels[i] = i % 10 == 9 ? -1 : i % 3;
    }
    return set;
}

static void images_done(Images *set) {
    free(set->tokens);
    free(set->labels);
}

static void test_split_for_validation(void) {
    enum { N = 600 }; // 180 of each class, 60 without
    uint16_t first_held[54 * 4], first_kept[3 * 7 * 4];
    for (int per_class = 0; per_class <= 7; per_class += 7)
        for (uint64_t seed = 1; seed <= 2; seed++) {
            Images set = numbered_images(N), held;
            int seen[N] = {0}, kept_of[3] = {0}, held_of[3] = {0};
            CHECK(!images_split(&set, &held, 3, per_class, seed), "%s", error_text());
            CHECK(set.n == 3 * (per_class ? 7 : 162) && held.n == 54, "%d and %d", set.n, held.n);
            for (int k = 0; k < set.n + held.n; k++) {
                const Images *from = k < set.n ? &set : &held;
                int at = k < set.n ? k : k - set.n, i = from->tokens[4 * at] / 4;
                CHECK(!seen[i]++ && from->labels[at] == i % 3 && i % 10 != 9 &&
                          from->tokens[4 * at + 3] == 4 * i + 3,
                      "picture %d", i);
                (k < set.n ? kept_of : held_of)[i % 3]++;
            }
            for (int c = 0; c < 3; c++)
                CHECK(held_of[c] == 18 && kept_of[c] == set.n / 3, "class %d: %d, %d", c,
                      kept_of[c], held_of[c]);
            if (!per_class && seed == 1) memcpy(first_held, held.tokens, sizeof first_held);
            CHECK(!memcmp(first_held, held.tokens, sizeof first_held),
                  "held out: not always the same");
            if (per_class && seed == 1) memcpy(first_kept, set.tokens, sizeof first_kept);
            CHECK(!per_class || seed == 1 || memcmp(first_kept, set.tokens, sizeof first_kept),
                  "two seeds draw the same pictures");
            images_done(&set);
            images_done(&held);
        }
    Images three = numbered_images(3), held;
    CHECK(images_split(&three, &held, 3, 0, 1) && strstr(error_text(), "0 for validation"), "%s",
          error_text());
    images_done(&three);
}

/* ---- 9 checkpoints: JSON and safetensors --------------------------------------------------- */

static Json *parse_text(const char *text) {
    return json_parse(text, strlen(text), "test.json");
}

/* json_parse refuses the text, and the sentence names the source and says `why`. */
static void check_json_refused(const char *text, const char *why) {
    Json *json = parse_text(text);
    CHECK(!json, "accepted %s", text);
    CHECK(json || (strstr(error_text(), "test.json") && strstr(error_text(), why)),
          "%s: \"%s\" does not say \"%s\"", text, error_text(), why);
    free(json);
}

static const char *const json_good[] = {
    "0",
    " \t\r\n[ ] ",
    "{}",
    "null",
    "true",
    "false",
    "\"\"",
    "-0",
    "1.5e-3",
    "[1,2,3]",
    "1E+2",
    "{\"a\":{\"b\":[{}]},\"c\":null}",
    "[\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\x7f\"]",
    "\"\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80\"",
};
static const char *const json_bad[][2] = {
    {"", "expected a value"},
    {" ", "expected a value"},
    {"[1,]", "expected a value"},
    {"[,1]", "expected a value"},
    {"[1 2]", "expected ','"},
    {"[1", "expected ','"},
    {"[1}", "expected ','"},
    {"{\"a\":1]", "expected ','"},
    {"{\"a\" 1}", "expected ':'"},
    {"{\"a\"", "expected ':'"},
    {"{a:1}", "key"},
    {"{\"a\":1,}", "key"},
    {"{1:2}", "key"},
    {"{'a':1}", "key"},
    {"1 2", "expected the end"},
    {"{}x", "expected the end"},
    {"nul", "expected a value"},
    {"True", "expected a value"},
    {"truex", "expected the end"},
    {"NaN", "expected a value"},
    {"[Infinity]", "expected a value"},
    {"-Infinity", "expected a value"},
    {"// x\n1", "expected a value"},
    {"[1] // x", "expected the end"},
    {"\xef\xbb\xbf{}", "expected a value"},
    {"\v1", "expected a value"},
    {"01", "expected the end"},
    {"-", "expected a value"},
    {"+1", "expected a value"},
    {".5", "expected a value"},
    {"1.", "digits"},
    {"1.e1", "digits"},
    {"1e", "digits"},
    {"1e+", "digits"},
    {"0x10", "expected the end"},
    {"1e400", "too large"},
    {"-1e400", "too large"},
    {"\"a", "does not end"},
    {"\"\n\"", "control character"},
    {"\"\t\"", "control character"},
    {"\"\\x\"", "backslash"},
    {"\"\\", "backslash"},
    {"\"\\u12\"", "hexadecimal"},
    {"\"\\u00g0\"", "hexadecimal"},
    {"\"\\u+123\"", "hexadecimal"},
    {"\"\\u\x10\x11\x12\x13\"", "hexadecimal"},
    {"\"\\u0000\"", "u0000"},
    {"\"\\ud800\"", "surrogate"},
    {"\"\\udc00\"", "surrogate"},
    {"\"\\ud800x\"", "surrogate"},
    {"\"\\udc00\\udc00\"", "surrogate"},
    {"\"\\ud800\\n\"", "surrogate"},
    {"\"\\ud800\\ud800\"", "surrogate"},
    {"\"\\ud800\\u0041\"", "surrogate"},
    {"\"\x80\"", "UTF-8"},
    {"\"\xc3\"", "UTF-8"},
    {"\"\xc0\x80\"", "UTF-8"},
    {"\"\xe0\x80\x80\"", "UTF-8"},
    {"\"\xf0\x80\x80\x80\"", "UTF-8"},
    {"\"\xed\xa0\x80\"", "UTF-8"},
    {"\"\xf4\x90\x80\x80\"", "UTF-8"},
    {"\"\xff\"", "UTF-8"},
    {"\"\xf8\x88\x80\x80\x80\"", "UTF-8"},
    {"\"\xe2\x82", "UTF-8"},
};

static void test_json_grammar(void) {
    for (size_t i = 0; i < sizeof json_good / sizeof *json_good; i++) {
        Json *json = parse_text(json_good[i]);
        CHECK(json, "refused %s: %s", json_good[i], error_text());
        free(json);
    }
    for (size_t i = 0; i < sizeof json_bad / sizeof *json_bad; i++)
        check_json_refused(json_bad[i][0], json_bad[i][1]);
    CHECK(!json_parse("\"a\0b\"", 5, "zero"), "accepted a zero byte in a string");
    CHECK(!json_parse("1\0", 2, "zero"), "accepted a zero byte behind the text");
    check_json_refused("[1 2]", "line 1, column 4");
    check_json_refused("{\n  \"a\": 1,\n  \"b\" 2}", "line 3, column 7");
}

/* Every text cut short is refused, and nothing beyond its end is read (a sanitizer would tell). */
static void test_json_cut_short(void) {
    const char *text =
        "{\"a\":[1.5e+10,true,null,\"\\ud83d\\ude00\\n\xe2\x82\xac\"],\"b\":{\"c\":false}}";
    for (size_t n = 0; n < strlen(text); n++) {
        char *copy = malloc(n + !n);
        memcpy(copy, text, n);
        CHECK(!json_parse(copy, n, "cut"), "accepted the first %zu bytes", n);
        free(copy);
    }
    Json *whole = parse_text(text);
    CHECK(whole, "%s", error_text());
    free(whole);
}

static void test_json_values(void) {
    Json *json = parse_text("{\"n\":-12.5e1,\"yes\":true,\"no\":false,\"nothing\":null,"
                            "\"list\":[1,[2,3],{}],\"text\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041"
                            "\\u00e9\\u20AC\\ud83d\\ude00\\uDBFF\\uDFFF\",\"\\u006bey\":7}");
    CHECK(json, "%s", error_text());
    if (!json) return;
    CHECK(json_get(json, "n")->type == JSON_NUMBER && json_get(json, "n")->number == -125, "n");
    CHECK(json_get(json, "yes")->type == JSON_BOOL && json_get(json, "yes")->number == 1, "yes");
    CHECK(json_get(json, "no")->type == JSON_BOOL && json_get(json, "no")->number == 0, "no");
    CHECK(json_get(json, "nothing")->type == JSON_NULL, "nothing");
    const Json *list = json_get(json, "list");
    CHECK(list->type == JSON_ARRAY && list->child->number == 1, "list[0]");
    CHECK(list->child->next->child->next->number == 3, "list[1][1]");
    CHECK(list->child->next->next->type == JSON_OBJECT && !list->child->next->next->next,
          "list[2]");
    CHECK(!list->child->next->next->child, "an empty object has a child");
    CHECK(!strcmp(json_get(json, "text")->text,
                  "\"\\/\b\f\n\r\tA\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xf4\x8f\xbf\xbf"),
          "text is %s", json_get(json, "text")->text);
    CHECK(json_get(json, "key") && json_get(json, "key")->number == 7, "an escaped key");
    CHECK(!json_get(json, "absent") && !json_get(list, "n") && !json_get(NULL, "n"), "absent");
    free(json);
    static const struct {
        const char *text;
        double value;
    } numbers[] = {{"0.1", 0.1},
                   {"1e-400", 0},
                   {"-0", 0},
                   {"9007199254740993", 0x1p53},
                   {"1.7976931348623157e308", 0x1.fffffffffffffp1023},
                   {"4.9e-324", 0x1p-1074},
                   {"100000000000000000000000000000000000000000000000000e-50", 1}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        json = parse_text(numbers[i].text);
        CHECK(json && json->number == numbers[i].value, "%s", numbers[i].text);
        free(json);
    }
}

static void test_json_limits(void) {
    char text[512];
    for (int depth = 63; depth <= 66; depth++) {
        for (int i = 0; i < depth; i++) text[i] = '[', text[depth + i] = ']';
        text[2 * depth] = 0;
        Json *json = parse_text(text);
        CHECK((json != NULL) == (depth <= 64), "depth %d", depth);
        free(json);
    }
    check_json_refused("{\"a\":1,\"b\":2,\"a\":3}", "\"a\"");
    check_json_refused("[{\"x\":{\"k\":1,\"\\u006b\":1}}]", "\"k\"");
    Json *json = parse_text("[{\"a\":{\"a\":1}},{\"a\":2}]");
    CHECK(json, "the same key in different objects: %s", error_text());
    free(json);
    // 200,000 keys: a quadratic check would take minutes
    int n = 200000;
    char *keys = malloc((size_t)n * 24), *p = keys;
    for (int i = 0; i < n; i++) p += sprintf(p, "%c\"key%d\":%d", i ? ',' : '{', i, i);
    strcpy(p, "}");
    json = parse_text(keys);
    CHECK(json && json_get(json, "key199999")->number == 199999, "%s", error_text());
    free(json);
    memcpy(strstr(keys, "key199999"), "key000001", 9);
    memcpy(strstr(keys, "key100000"), "key000001", 9);
    check_json_refused(keys, "key000001");
    free(keys);
}

static void test_json_read(void) {
    const char *path = scratch_path("palette.json"), text[] = "{\"clusters\":[[-1,0.5,1]]}\n";
    write_bytes(path, text, sizeof text - 1);
    Json *json = json_read(path);
    CHECK(json, "%s", error_text());
    if (json) {
        const Json *colour = json_get(json, "clusters")->child->child;
        CHECK(colour->number == -1 && colour->next->number == 0.5, "clusters");
    }
    free(json);
    write_bytes(path, "{", 1);
    CHECK(!json_read(path) && strstr(error_text(), "palette.json: line 1"), "%s", error_text());
    CHECK(!json_read(scratch_path("absent.json")) && strstr(error_text(), "absent.json"), "%s",
          error_text());
    CHECK(!json_read(scratch) && strstr(error_text(), "folder"), "%s", error_text());
}

/* Write a safetensors file by hand: a header, and n bytes of data behind it. */
static const char *hand_made(const char *header, const void *data, size_t n) {
    static uint8_t bytes[4096];
    size_t length = strlen(header);
    const char *path = scratch_path("hand.safetensors");
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, header, length);
    if (n) memcpy(bytes + 8 + length, data, n);
    write_bytes(path, bytes, 8 + length + n);
    return path;
}

static void check_open_refused(const char *path, const char *why) {
    Safetensors s;
    int opened = safetensors_open(&s, path) == 0;
    CHECK(!opened, "opened a file that should be refused: %s", why);
    CHECK(opened || (strstr(error_text(), path) && strstr(error_text(), why)),
          "\"%s\" does not say \"%s\"", error_text(), why);
    if (opened) safetensors_close(&s);
}

/* A header, the bytes of data behind it, what the sentence must say. */
static const struct {
    const char *header;
    int n;
    const char *why;
} headers_bad[] = {
    {"[]", 0, "'{'"},
    {" {}", 0, "'{'"},
    {"{\"a\":1", 0, "header: line 1"},
    {"{}\n{", 0, "header: line 2"},
    {"{\"a\":1}", 0, "tensor a: dtype"},
    {"{\"a\":{\"shape\":[],\"data_offsets\":[0,4]}}", 4, "tensor a: dtype"},
    {"{\"a\":{\"dtype\":1,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "tensor a: dtype"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "tensor a: shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "tensor a: shape"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 4, "tensor a: data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":4}}", 4, "a: data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4]}}", 4, "a: data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4,8]}}", 4, "a: data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[-4,0]}}", 4, "whole numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0.5,4.5]}}", 4, "whole numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4,0]}}", 4, "whole numbers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[\"0\",4]}}", 4, "data_offsets"},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[],\"data_offsets\":[0,1e16]}}", 4, "data_offsets"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "shape[0]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1.5],\"data_offsets\":[0,4]}}", 4, "shape[1]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[null],\"data_offsets\":[0,4]}}", 4, "shape[0]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9007199254740992],\"data_offsets\":[0,4]}}", 4,
     "shape[0]"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
     "dimensions"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,2147483648],\"data_offsets\":[0,4]}}", 4,
     "2^63"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
     "2^63"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,1073741824],\"data_offsets\":[0,0]}}", 0,
     "tensor a: data_offsets span 0 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "span 4 bytes"},
    {"{\"a\":{\"dtype\":\"U16\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2, "span 2 bytes"},
    {"{\"a\":{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "span 4 bytes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, "truncated"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "trailing"},
    {"{}", 1, "trailing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, "tensor a: "},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"b\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[2,6]}}",
     6, "overlaps a"},
    {"{\"b\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},"
     "\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
     4, "overlaps"},
    {"{\"b\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[2,2]},"
     "\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
     4, "tensor b"},
    {"{\"b\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[6,10]},"
     "\"a\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]}}",
     10, "a hole after a"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, "duplicate key \"a\""},
    {"{\"__metadata__\":[]}", 0, "__metadata__"},
    {"{\"__metadata__\":{\"step\":1}}", 0, "__metadata__: step"},
};

static void test_safetensors_refused(void) {
    uint8_t zeros[16] = {0}, length[9] = {0};
    for (size_t i = 0; i < sizeof headers_bad / sizeof *headers_bad; i++)
        check_open_refused(hand_made(headers_bad[i].header, zeros, (size_t)headers_bad[i].n),
                           headers_bad[i].why);
    const char *path = scratch_path("short.safetensors");
    write_bytes(path, zeros, 7);
    check_open_refused(path, "too few");
    write_bytes(path, zeros, 12); // a header of no bytes
    check_open_refused(path, "'{'");
    memcpy(length, "\x02\0\0\0\0\0\0\0{", 9);
    write_bytes(path, length, 9);
    check_open_refused(path, "header length 2");
    memset(length, 0xff, 8);
    write_bytes(path, length, 9);
    check_open_refused(path, "header length 18446744073709551615");
    check_open_refused(scratch_path("absent.safetensors"), "cannot open");
    check_open_refused(scratch, "folder");
}

/* A header beyond the format's limit of 100,000,000 bytes, in a file that would hold it. */
static void test_safetensors_long_header(void) {
    const char *path = scratch_path("long.safetensors");
    const uint8_t start[9] = {0x01, 0xe1, 0xf5, 0x05, 0, 0, 0, 0, '{'}; // 100,000,001
    FILE *f = fopen(path, "wb");
    int made = f && fwrite(start, 1, 9, f) == 9 && !fseek(f, 100000100, SEEK_SET) &&
               fputc(0, f) == 0; // mostly a hole: it takes no room on most disks
    if (f) fclose(f);
    CHECK(made, "cannot make %s", path);
    check_open_refused(path, "100000001 bytes");
    remove(path);
}

/* What is unusual but allowed: padding, fields to ignore, an odd order, no elements, dtypes of
   tomorrow. */
static void test_safetensors_allowed(void) {
    const uint8_t data[] = {1, 2, 3, 0, 0, 0x80, 0x3f};
    Safetensors s;
    int opened = !safetensors_open(
        &s, hand_made("{\"b\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[3,7],\"more\":{}},"
                      "\"none\":{\"dtype\":\"F64\",\"shape\":[5,0],\"data_offsets\":[3,3]},"
                      "\"a\":{\"data_offsets\":[0,3],\"shape\":[9],\"dtype\":\"F3\"}}  \n ",
                      data, sizeof data));
    CHECK(opened, "%s", error_text());
    if (!opened) return;
    real x[2] = {0, 7};
    const Stored *a = safetensors_find(&s, "a"), *b = safetensors_find(&s, "b");
    CHECK(s.n_tensor == 3 && a && b && !safetensors_find(&s, "c"), "%d tensors", s.n_tensor);
    CHECK(b->n_dim == 0 && b->count == 1 && b->end - b->begin == 4, "shape of b");
    CHECK(safetensors_read(&s, b, x) == 0 && x[0] == 1 && x[1] == 7, "b is %g", (double)x[0]);
    CHECK(safetensors_read(&s, safetensors_find(&s, "none"), x) == 0, "%s", error_text());
    CHECK(safetensors_read(&s, a, x) == -1 && strstr(error_text(), "tensor a") &&
              strstr(error_text(), "F3"),
          "%s", error_text());
    CHECK(!safetensors_metadata(&s, "format"), "metadata out of nothing");
    safetensors_close(&s);
    CHECK(!safetensors_open(&s, hand_made("{}", "", 0)) && s.n_tensor == 0, "%s", error_text());
    safetensors_close(&s);
}

/* Tensors that are no numbers for this program are there, but not read. */
static void test_safetensors_unread_dtypes(void) {
    static const char *const dtypes[] = {"U64", "I32",  "U32",     "I16", "U16", "I8",
                                         "U8",  "BOOL", "F8_E4M3", "C64", "f32", ""};
    static const int bytes[] = {8, 4, 4, 2, 2, 1, 1, 1, 1, 8, 4, 4};
    for (int i = 0; i < 12; i++) {
        char header[128];
        Safetensors s;
        real x = 7;
        snprintf(header, sizeof header,
                 "{\"x\":{\"dtype\":\"%s\",\"shape\":[1],\"data_offsets\":[0,%d]}}", dtypes[i],
                 bytes[i]);
        int opened = !safetensors_open(&s, hand_made(header, "\0\0\0\0\0\0\0", (size_t)bytes[i]));
        CHECK(opened, "%s", error_text());
        if (!opened) continue;
        CHECK(safetensors_read(&s, &s.tensors[0], &x) == -1 && x == 7, "%s was read", dtypes[i]);
        CHECK(strstr(error_text(), "tensor x") && strstr(error_text(), dtypes[i]), "%s",
              error_text());
        safetensors_close(&s);
    }
}

/* Values from bytes written down by hand, for every dtype that is read. */
static void test_safetensors_dtypes(void) {
    static const struct {
        const char *dtype;
        int bytes;
        uint8_t data[64];
        double values[8];
    } cases[] = {
        {"F64",
         8,
         {0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0xf0, 0x7f},
         {1.5, -0.0, INFINITY}},
        {"F32",
         4,
         {0, 0, 0xc0, 0xbf, 1, 0, 0, 0, 0xff, 0xff, 0x7f, 0x7f},
         {-1.5, 0x1p-149, 0x1.fffffep127}},
        {"F16",
         2,
         {0, 0x3c, 1, 0, 0xff, 3, 0, 4, 0xff, 0x7b, 0, 0xfc, 0, 0x80, 1, 0x80},
         {1, 0x1p-24, 1023 * 0x1p-24, 0x1p-14, 65504, -INFINITY, -0.0, -0x1p-24}},
        {"BF16", 2, {0x80, 0x3f, 0x49, 0xc0, 0x80, 0x7f, 1, 0}, {1, -3.140625, INFINITY, 0x1p-133}},
        {"I64", 8, {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1}, {-2, 0x1p32}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char header[128];
        real x[8];
        int n = 64 / cases[i].bytes < 8 ? 64 / cases[i].bytes : 8;
        snprintf(header, sizeof header,
                 "{\"x\":{\"dtype\":\"%s\",\"shape\":[%d],"
                 "\"data_offsets\":[0,%d]}}",
                 cases[i].dtype, n, n * cases[i].bytes);
        Safetensors s;
        int opened =
            !safetensors_open(&s, hand_made(header, cases[i].data, (size_t)(n * cases[i].bytes)));
        CHECK(opened, "%s", error_text());
        if (!opened) continue;
        CHECK(!safetensors_read(&s, &s.tensors[0], x), "%s", error_text());
        for (int j = 0; j < n; j++)
            CHECK((double)x[j] == cases[i].values[j] &&
                      !signbit(x[j]) == !signbit(cases[i].values[j]),
                  "%s[%d] is %g, not %g", cases[i].dtype, j, (double)x[j], cases[i].values[j]);
        safetensors_close(&s);
    }
    // not a number stays one
    Safetensors s;
    real x[2] = {0, 0};
    int opened = !safetensors_open(
        &s, hand_made("{\"h\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[0,2]},"
                      "\"b\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[2,4]}}",
                      "\x01\x7c\xc0\x7f", 4));
    CHECK(opened, "%s", error_text());
    if (!opened) return;
    CHECK(!safetensors_read(&s, &s.tensors[0], x) && isnan(x[0]), "F16 NaN is %g", (double)x[0]);
    CHECK(!safetensors_read(&s, &s.tensors[1], x) && isnan(x[0]), "BF16 NaN is %g", (double)x[0]);
    safetensors_close(&s);
}

/* Large enough for several chunks, odd enough for the last one to be partial. */
static void test_safetensors_round_trip(void) {
    enum { N = 50021 };
    const char *path = scratch_path("round.safetensors");
    const char *metadata[] = {"format",
                              "pt",
                              "a \"quoted\"\n\\key\x01\x7f",
                              "\xc3\xa9\t\xf0\x9f\x98\x80",
                              "not UTF-8",
                              "a\xff\xc3",
                              "empty",
                              "",
                              NULL};
    real *x = malloc(N * sizeof *x), *y = malloc(N * sizeof *y);
    for (int i = 0; i < N; i++) x[i] = (real)random_normal(3, 1, (uint64_t)i);
    x[7] = -0.0f, x[8] = INFINITY, x[9] = (real)0x1p-149;
    Stored tensors[] = {{.name = "h.weight", .dtype = "F16", .n_dim = 1, .shape = {3}, .data = x},
                        {.name = "x", .dtype = "F32", .n_dim = 2, .shape = {1, N}, .data = x},
                        {.name = "bias \"0\"", .dtype = "F32", .n_dim = 1, .shape = {N}},
                        {.name = "scalar", .dtype = "F64", .data = x + 1},
                        {.name = "none", .dtype = "F32", .n_dim = 2, .shape = {0, 4}, .data = x},
                        {.name = "wide", .dtype = "F64", .n_dim = 1, .shape = {N}, .data = x}};
    Safetensors s;
    int opened = !safetensors_write(path, tensors, 6, metadata) && !safetensors_open(&s, path);
    CHECK(opened, "%s", error_text());
    for (int i = 0; opened && i < 6; i++) {
        const Stored *t = safetensors_find(&s, tensors[i].name);
        CHECK(t, "%s is missing", tensors[i].name);
        if (!t) continue;
        CHECK(t->n_dim == tensors[i].n_dim &&
                  !memcmp(t->shape, tensors[i].shape, sizeof t->shape) &&
                  !strcmp(t->dtype, tensors[i].dtype),
              "%s has another shape", t->name);
        memset(y, 1, N * sizeof *y);
        CHECK(!safetensors_read(&s, t, y), "%s", error_text());
        for (int64_t j = 0; j < t->count; j++) {
            real want = !tensors[i].data ? 0 : i == 1 ? (float)x[j] : tensors[i].data[j];
            if (i > 0) CHECK(!memcmp(&y[j], &want, sizeof want), "%s[%d]", t->name, (int)j);
            else CHECK(fabs((double)(y[j] - want)) <= 0x1p-11 * fabs((double)want), "half");
        }
    }
    if (opened) {
        CHECK(s.tensors[0].begin % 8 == 0, "data begins at byte %d", (int)s.tensors[0].begin);
        CHECK(!strcmp(safetensors_metadata(&s, "format"), "pt"), "format");
        CHECK(!strcmp(safetensors_metadata(&s, metadata[2]), metadata[3]), "a quoted key");
        CHECK(!strcmp(safetensors_metadata(&s, "not UTF-8"), "a\xef\xbf\xbd\xef\xbf\xbd"),
              "U+FFFD");
        CHECK(!strcmp(safetensors_metadata(&s, "empty"), ""), "empty");
        CHECK(!safetensors_metadata(&s, "absent"), "absent");
        safetensors_close(&s);
    }
    free(x);
    free(y);
}

/* The data begins on a multiple of 8 whatever the header's length. */
static void test_safetensors_aligned(void) {
    const char *path = scratch_path("aligned.safetensors");
    real one = 1, x = 0;
    Stored t = {.dtype = "F64", .data = &one};
    for (int n = 0; n < 9; n++) {
        Safetensors s;
        t.name = &"abcdefgh"[n];
        int opened = !safetensors_write(path, &t, 1, NULL) && !safetensors_open(&s, path);
        CHECK(opened, "%s", error_text());
        if (!opened) continue;
        CHECK(s.tensors[0].begin % 8 == 0, "data begins at byte %d", (int)s.tensors[0].begin);
        CHECK(!safetensors_read(&s, &s.tensors[0], &x) && x == 1, "x is %g", (double)x);
        safetensors_close(&s);
    }
}

/* F16 rounds to the nearest, ties to even, and refuses what would become infinite. */
static void test_safetensors_half(void) {
    static const double cases[][2] = {
        {1, 1},
        {1 + 0x1p-11, 1},                     // a tie: down to even
        {1 + 3 * 0x1p-11, 1 + 0x1p-9},        // a tie: up to even
        {1 + 0x1p-11 + 0x1p-20, 1 + 0x1p-10}, // just above a tie
        {2 - 0x1p-12, 2},                     // the carry reaches the exponent
        {-65504, -65504},
        {65519.99, 65504},
        {0x1p-14, 0x1p-14},           // the smallest normal number
        {0x1p-14 - 0x1p-26, 0x1p-14}, // a subnormal that rounds up to it
        {0x1p-24, 0x1p-24},
        {0x1p-25, 0},         // half the smallest: a tie, to even
        {0x1.8p-24, 0x1p-23}, // a tie, to even
        {-0x1.01p-25, -0x1p-24},
        {0x1p-60, 0},
        {-0.0, -0.0},
        {0, 0},
        {INFINITY, INFINITY},
    };
    enum { N = sizeof cases / sizeof *cases };
    const char *path = scratch_path("half.safetensors");
    real x[N], y[N];
    for (int i = 0; i < N; i++) x[i] = (real)cases[i][0];
    Stored t = {.name = "h", .dtype = "F16", .n_dim = 1, .shape = {N}, .data = x};
    Safetensors s;
    int opened = !safetensors_write(path, &t, 1, NULL) && !safetensors_open(&s, path);
    CHECK(opened, "%s", error_text());
    if (!opened) return;
    CHECK(!safetensors_read(&s, &s.tensors[0], y), "%s", error_text());
    for (int i = 0; i < N; i++)
        CHECK((double)y[i] == cases[i][1] && !signbit(y[i]) == !signbit(cases[i][1]),
              "%a became %a, not %a", cases[i][0], (double)y[i], cases[i][1]);
    safetensors_close(&s);
}

/* All 65,536 patterns, NaNs apart, are read and written as they were. */
static void test_safetensors_half_patterns(void) {
    const char *path = scratch_path("patterns.safetensors");
    static uint8_t all[8 + 64 + 2 * 65536];
    static real values[65536];
    char header[65];
    snprintf(header, sizeof header, "%-64s",
             "{\"h\":{\"dtype\":\"F16\",\"shape\":[65536],"
             "\"data_offsets\":[0,131072]}}");
    CHECK(strlen(header) == 64, "header");
    all[0] = 64;
    memcpy(all + 8, header, 64);
    for (int i = 0; i < 65536; i++)
        all[72 + 2 * i] = (uint8_t)i, all[73 + 2 * i] = (uint8_t)(i >> 8);
    write_bytes(path, all, sizeof all);
    Safetensors s;
    int opened = !safetensors_open(&s, path) && !safetensors_read(&s, &s.tensors[0], values);
    CHECK(opened, "%s", error_text());
    if (!opened) return;
    safetensors_close(&s);
    Stored t = {.name = "h", .dtype = "F16", .n_dim = 1, .shape = {65536}, .data = values};
    opened = !safetensors_write(path, &t, 1, NULL) && !safetensors_open(&s, path);
    CHECK(opened, "%s", error_text());
    if (!opened) return;
    FILE *f = fopen(path, "rb");
    fseek(f, (long)s.tensors[0].begin, SEEK_SET);
    for (int i = 0; i < 65536; i++) {
        int low = fgetc(f), bits = low | fgetc(f) << 8;
        CHECK(bits == i || (isnan(values[i]) && (bits & 0x7c00) == 0x7c00 && (bits & 0x3ff)),
              "%04x became %04x", i, bits);
    }
    fclose(f);
    safetensors_close(&s);
}

/* What cannot be written is refused by name, and the old file stays. */
static void test_safetensors_write_refused(void) {
    const char *path = scratch_path("keep.safetensors");
    real x[2] = {1, 65520};
    Stored t = {.name = "big", .dtype = "F32", .n_dim = 1, .shape = {2}, .data = x};
    CHECK(!safetensors_write(path, &t, 1, NULL), "%s", error_text());
    t.dtype = "F16";
    CHECK(safetensors_write(path, &t, 1, NULL) == -1 && strstr(error_text(), path) &&
              strstr(error_text(), "tensor big") && strstr(error_text(), "65520"),
          "%s", error_text());
    static const char *const dtypes[] = {"U8", "BF16", "I64", "float"};
    for (int i = 0; i < 4; i++) {
        t.dtype = dtypes[i];
        CHECK(safetensors_write(path, &t, 1, NULL) == -1 && strstr(error_text(), dtypes[i]),
              "%s: %s", dtypes[i], error_text());
    }
    char part[512];
    snprintf(part, sizeof part, "%s.part", path);
    FILE *left = fopen(part, "rb");
    CHECK(!left, "%s is left behind", part);
    if (left) fclose(left);
    Safetensors s;
    int opened = !safetensors_open(&s, path);
    CHECK(opened && !strcmp(s.tensors[0].dtype, "F32"), "the old file is gone: %s", error_text());
    if (opened) safetensors_close(&s);
    t.dtype = "F32";
    snprintf(part, sizeof part, "%s/absent/x.safetensors", scratch);
    CHECK(safetensors_write(part, &t, 1, NULL) == -1 && strstr(error_text(), "absent"), "%s",
          error_text());
}

/* A file that shrinks between opening and reading is an error, not garbage. */
static void test_safetensors_cut_while_open(void) {
    const char *path = scratch_path("cut.safetensors");
    static real x[100000];
    Stored t = {.name = "x", .dtype = "F32", .n_dim = 1, .shape = {100000}, .data = x};
    Safetensors s;
    int opened = !safetensors_write(path, &t, 1, NULL) && !safetensors_open(&s, path);
    CHECK(opened, "%s", error_text());
    if (!opened) return;
    write_bytes(path, "", 0); // the same file, now empty
    CHECK(safetensors_read(&s, &s.tensors[0], x) == -1 && strstr(error_text(), "tensor x"), "%s",
          error_text());
    safetensors_close(&s);
}

/* The fixture was written by the reference implementation. */
static void test_safetensors_fixture(void) {
    Safetensors s;
    int opened = !safetensors_open(&s, "data/fixture/tiny.safetensors");
    CHECK(opened, "%s", error_text());
    if (!opened) return;
    for (int i = 0; i < s.n_tensor; i++) {
        real *x = malloc((size_t)s.tensors[i].count * sizeof *x + 1);
        CHECK(!safetensors_read(&s, &s.tensors[i], x), "%s", error_text());
        double sum = 0;
        for (int64_t j = 0; j < s.tensors[i].count; j++) sum += (double)x[j];
        CHECK(isfinite(sum), "%s is not finite", s.tensors[i].name);
        free(x);
    }
    const Stored *wte = safetensors_find(&s, "transformer.wte.weight");
    CHECK(wte && wte->n_dim == 2 && wte->shape[0] == 13 && wte->shape[1] == 16, "wte");
    CHECK(!strcmp(safetensors_metadata(&s, "n_layer"), "2"), "metadata n_layer");
    safetensors_close(&s);
}

/* ---- 10 sampling ---------------------------------------------------------------------------- */

static Model sampling_model(void) {
    Model m;
    Config c = {.n_px = 6, .n_vocab = 11, .n_embd = 32, .n_head = 4, .n_layer = 3};
    CHECK(!model_init(&m, c), "%s", error_text());
    fill(m.params, m.n_params, 9, 0.2);
    return m;
}

/* Logits one position at a time with cached keys and values, and all at once. */
static void test_cache_is_forward(void) {
    enum { B = 3, T = 36, K = 11 };
    Model m = sampling_model();
    uint16_t tokens[B * T], previous[B] = {0};
    for (int i = 0; i < B * T; i++) tokens[i] = (uint16_t)(random_bits(1, 1, (uint64_t)i) % K);
    Activations *acts = activations_new(&m.config, B, KEEP_NOTHING);
    Sampler *sampler = sampler_new(&m.config, B);
    model_forward(&m, acts, tokens, NULL, B);
    const real *all = model_logits(&m, acts, B);
    double worst = 0;
    for (int t = 0; t < T; t++) {
        const real *logits = sampler_step(&m, sampler, t, previous, B);
        for (int b = 0; b < B; b++) {
            for (int k = 0; k < K; k++)
                worst =
                    fmax(worst, fabs((double)logits[b * K + k] - (double)all[(b * T + t) * K + k]));
            previous[b] = tokens[b * T + t];
        }
    }
    CHECK(worst < (IS_DOUBLE ? 1e-12 : 1e-4), "off by %g", worst);
    free(sampler);
    free(acts);
    model_free(&m);
}

/* context: the row that was drawn last, and the rows of all pictures. */
static void count_rows(void *context, const uint16_t *tokens, int B, int rows) {
    int *seen = context;
    CHECK(rows == seen[0] % 6 + 1 && tokens[6 * rows - 1] < 11, "row %d after %d", rows, seen[0]);
    seen[0] = rows;
    seen[1] += B;
}

static void test_samples_do_not_depend_on_the_split(void) {
    enum { N = 7, T = 36 };
    Model m = sampling_model();
    uint16_t all[N * T], some[N * T];
    Sampler *sampler = sampler_new(&m.config, N);
    sample_images(&m, sampler, all, N, 0, 5, 0, 1, 0);
    free(sampler);
    for (int B = 1; B <= 3; B++) {
        threads_set(B);
        sampler = sampler_new(&m.config, B);
        sample_images(&m, sampler, some, N, 0, 5, 0, 1, 0);
        CHECK(!memcmp(all, some, sizeof all), "%d at a time differ", B);
        free(sampler);
    }
    threads_set(0);
    sampler = sampler_new(&m.config, 2);
    sample_images(&m, sampler, some, 2, 0, 5, 3, 1, 0);
    CHECK(!memcmp(all + 3 * T, some, 2 * T * sizeof *all), "the third picture differs");
    int rows[2] = {0};
    sampler_watch(sampler, count_rows, rows);
    sample_images(&m, sampler, some, 3, 0, 5, 0, 1, 0); // two at once, then one
    CHECK(rows[0] == 6 && rows[1] == 6 * 2 + 6, "%d rows at the end, %d in all", rows[0], rows[1]);
    sampler_watch(sampler, NULL, NULL);
    memcpy(some, all + T, T * sizeof *all);
    sample_images(&m, sampler, some, 1, 20, 6, 0, 1, 0);
    CHECK(!memcmp(all + T, some, 20 * sizeof *all), "given positions changed");
    CHECK(memcmp(all + T, some, T * sizeof *all), "another seed completes alike");
    sample_images(&m, sampler, some, 1, 0, 5, 0, 1, 1);
    sample_images(&m, sampler, some + T, 1, 0, 9, 0, 1, 1);
    CHECK(!memcmp(some, some + T, T * sizeof *some), "top-k 1 depends on the seed");
    free(sampler);
    model_free(&m);
}

/* With one position's logits known, the drawn colours must follow them. */
static void test_sampling_frequencies(void) {
    enum { N = 4000, K = 11 };
    Model m = sampling_model();
    m.config.n_px = 1; // one position: what is drawn follows the first logits
    uint16_t *tokens = calloc(N, sizeof *tokens), none[1] = {0};
    Sampler *sampler = sampler_new(&m.config, 50);
    const real *logits = sampler_step(&m, sampler, 0, none, 1);
    double p[2][K], sum[2] = {0}; // from all, from the three most probable
    for (int k = 0; k < K; k++) {
        int above = 0;
        for (int j = 0; j < K; j++) above += logits[j] > logits[k];
        sum[0] += p[0][k] = exp((double)logits[k] / 1.5);
        sum[1] += p[1][k] = above < 3 ? p[0][k] : 0;
    }
    for (int few = 0; few < 2; few++) {
        double apart = 0;
        sample_images(&m, sampler, tokens, N, 0, 1, 0, 1.5, few ? 3 : 0);
        for (int k = 0; k < K; k++) {
            int count = 0;
            for (int i = 0; i < N; i++) count += tokens[i] == k;
            CHECK(p[few][k] > 0 || !count, "colour %d is not among the first three", k);
            apart = fmax(apart, fabs((double)count / N - p[few][k] / sum[few]));
        }
        CHECK(apart < 0.03, "%s: a frequency is off by %g", few ? "top-k" : "all", apart);
    }
    free(sampler);
    free(tokens);
    model_free(&m);
}

/* The trained model in the tree, drawing what it drew where its vectors were made. Other compilers
   and instruction sets round otherwise, so the same draw can fall to the neighbouring colour; but
   only where the uniform number lies at the boundary between the two. Fed with the stored colours,
   the logits differ by rounding alone (1e-5, nothing builds up), which moves no boundary by more
   than that: so every stored colour must be the draw, up to MARGIN. What sample_images draws by
   itself is compared as far as no boundary has come so near. IGPT_RECORD=1 writes the vectors
   instead. */
static void test_trained_model(void) {
    enum { N = 4, SEED = 1 };
    const double MARGIN = 1e-4;
    const char *path = "data/fixture/emoji-ar.safetensors";
    Model m;
    Safetensors file;
    CHECK(!model_load(&m, "data/emoji-ar"), "%s", error_text());
    int T = m.config.n_px * m.config.n_px, K = m.config.n_vocab, clear[N];
    uint16_t *drawn = calloc((size_t)(N * T), sizeof *drawn), previous[N];
    Sampler *sampler = sampler_new(&m.config, N);
    sample_images(&m, sampler, drawn, N, 0, SEED, 0, 1, 0);
    if (getenv("IGPT_RECORD")) {
        real *values = calloc((size_t)(N * T), sizeof *values);
        for (int i = 0; i < N * T; i++) values[i] = drawn[i];
        Stored tokens = {
            .name = "tokens", .dtype = "F32", .n_dim = 2, .shape = {N, T}, .data = values};
        CHECK(!safetensors_write(path, &tokens, 1, NULL), "%s", error_text());
        free(values);
    }
    CHECK(!safetensors_open(&file, path), "%s", error_text());
    real *stored = stored_tensor(&file, "tokens");
    int compared = 0, fits = safetensors_find(&file, "tokens")->count == N * T;
    CHECK(fits, "%s is of another model", path);
    for (int t = 0; t < T && fits; t++) {
        const real *logits = sampler_step(&m, sampler, t, previous, N);
        for (int b = 0; b < N; b++) {
            double sum = 0, low = 0, u = sample_uniform(SEED, b, t);
            previous[b] = (uint16_t)stored[b * T + t];
            for (int k = 0; k < K; k++) sum += exp((double)logits[b * K + k]);
            for (int k = 0; k < previous[b]; k++) low += exp((double)logits[b * K + k]) / sum;
            double high = low + exp((double)logits[b * K + previous[b]]) / sum;
            CHECK(u > low - MARGIN && u < high + MARGIN,
                  "picture %d, position %d: %g is not in %g "
                  "to %g",
                  b, t, u, low, high);
            clear[b] = (t == 0 || clear[b]) && u > low + MARGIN && u < high - MARGIN;
            CHECK(!clear[b] || drawn[b * T + t] == previous[b],
                  "picture %d, position %d: colour %d, "
                  "not %d",
                  b, t, drawn[b * T + t], previous[b]);
            compared += clear[b];
        }
    }
    CHECK(compared >= m.config.n_px, "only %d positions could be compared", compared);
    safetensors_close(&file);
    free(stored);
    free(sampler);
    free(drawn);
    model_free(&m);
}

/* ---- 9 model directories -------------------------------------------------------------------- */

static void test_model_directory(void) {
    Model m, back;
    CHECK(!model_init(&m, small), "%s", error_text());
    fill(m.params, m.n_params, 9, 0.3);
    for (int i = 0; i < 3 * small.n_vocab; i++) m.palette[i] = (real)(float)(i / 27.0 - 0.4);
    free(m.class_names[2]);
    m.class_names[2] = strdup("People \"&\" Body");
    char *dir = scratch_path("model/deep");
    CHECK(!model_save(&m, dir, IS_DOUBLE ? "F64" : "F32"), "%s", error_text());
    CHECK(!model_load(&back, dir), "%s", error_text());
    CHECK(!memcmp(&m.config, &back.config, sizeof m.config), "the configuration differs");
    CHECK(m.n_params == back.n_params && !memcmp(m.params, back.params, m.n_params * sizeof(real)),
          "the weights differ");
    for (int i = 0; i < 3 * small.n_vocab; i++)
        CHECK(fabs((double)m.palette[i] - (double)back.palette[i]) < 1e-7, "palette[%d] differs",
              i);
    CHECK(!strcmp(back.class_names[2], "People \"&\" Body"), "class 2 is %s", back.class_names[2]);
    model_free(&back);

    /* Whatever is cut off a file, loading fails and names the file. */
    static const char *const names[] = {"model.safetensors", "config.json",
                                        "preprocessor_config.json"};
    for (int i = 0; i < 3; i++) {
        char path[300];
        size_t n;
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        uint8_t *bytes = read_bytes(path, &n);
        for (size_t kept = 0; kept < n; kept += n / 7 + 1) {
            write_bytes(path, bytes, kept);
            CHECK(model_load(&back, dir) && strstr(error_text(), names[i]),
                  "%s cut to %zu bytes: %s", names[i], kept, error_text());
        }
        write_bytes(path, bytes, n);
        remove(path);
        CHECK(model_load(&back, dir) && strstr(error_text(), names[i]), "%s removed: %s", names[i],
              error_text());
        write_bytes(path, bytes, n);
        free(bytes);
    }
    CHECK(!model_load(&back, dir), "%s", error_text());
    model_free(&back);
    model_free(&m);
}

/* Write an .npy file: version, header, and n bytes of data. */
static char *write_npy(int version, const char *header, const void *data, size_t n) {
    char *path = scratch_path("palette.npy");
    size_t length = strlen(header), at = version == 1 ? 10 : 12;
    uint8_t *bytes = calloc(at + length + n, 1);
    memcpy(bytes, "\x93NUMPY", 6);
    bytes[6] = (uint8_t)version;
    bytes[8] = (uint8_t)length;
    bytes[9] = (uint8_t)(length >> 8);
    memcpy(bytes + at, header, length);
    if (n) memcpy(bytes + at + length, data, n);
    write_bytes(path, bytes, at + length + n);
    free(bytes);
    return path;
}

// -1, -0.5, 0; 0.25, 0.75, 1, as little-endian f4 and f8
static const uint8_t npy_f4[] = {0, 0, 0x80, 0xbf, 0, 0, 0,    0xbf, 0, 0, 0,    0,
                                 0, 0, 0x80, 0x3e, 0, 0, 0x40, 0x3f, 0, 0, 0x80, 0x3f};
static const uint8_t npy_f8[] = {0, 0, 0, 0, 0, 0, 0xf0, 0xbf, 0, 0, 0, 0, 0, 0, 0xe0, 0xbf,
                                 0, 0, 0, 0, 0, 0, 0,    0,    0, 0, 0, 0, 0, 0, 0xd0, 0x3f,
                                 0, 0, 0, 0, 0, 0, 0xe8, 0x3f, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f};

static void test_npy_palette(void) {
    static const double wanted[] = {-1, -0.5, 0, 0.25, 0.75, 1};
    const char *f4 = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }          \n";
    const char *f8 = "{'shape': (2,3), 'fortran_order': False, 'descr': '<f8'}\n";
    for (int version = 1; version <= 3; version++)
        for (int wide = 0; wide < 2; wide++) {
            int K;
            char *path =
                wide ? write_npy(version, f8, npy_f8, 48) : write_npy(version, f4, npy_f4, 24);
            real *palette = palette_read(path, &K);
            CHECK(palette && K == 2, "version %d: %s", version, error_text());
            for (int i = 0; i < 6 && palette; i++)
                CHECK((double)palette[i] == wanted[i], "value %d: %g", i, (double)palette[i]);
            free(palette);
        }
}

static void check_npy_refused(char *path, const char *word) {
    int K;
    real *palette = palette_read(path, &K);
    CHECK(!palette && strstr(error_text(), path) && strstr(error_text(), word),
          "expected \"%s\": %s", word, palette ? "it was read" : error_text());
    free(palette);
}

static void test_npy_refused(void) {
    static const struct {
        const char *header, *word;
    } bad[] = {{"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }", "descr"},
               {"{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }", "descr"},
               {"{'fortran_order': False, 'shape': (2, 3), }", "descr is missing"},
               {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", "fortran_order"},
               {"{'descr': '<f4', 'shape': (2, 3), }", "fortran_order"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }", "shape"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }", "shape"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 1), }", "shape"},
               {"{'descr': '<f4', 'fortran_order': False}", "shape is missing"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3), }", "colours"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 3), }", "colours"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3), }", "24 bytes of data"},
               {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }", "24 bytes of data"}};
    const char *good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
    uint8_t data[24];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check_npy_refused(write_npy(1, bad[i].header, npy_f4, 24), bad[i].word);
    check_npy_refused(write_npy(0, good, npy_f4, 24), "version 0");
    check_npy_refused(write_npy(4, good, npy_f4, 24), "version 4");
    memcpy(data, npy_f4, 24);
    data[3] = 0x41; // 16
    check_npy_refused(write_npy(1, good, data, 24), "colour 0");
    data[2] = 0xc0, data[3] = 0x7f; // NaN
    check_npy_refused(write_npy(1, good, data, 24), "colour 0");
    size_t n;
    char *path = write_npy(1, good, npy_f4, 24);
    uint8_t *whole = read_bytes(path, &n);
    for (size_t kept = 0; kept < n; kept++) {
        write_bytes(path, whole, kept);
        check_npy_refused(path, "palette.npy");
    }
    whole[0] = 'P';
    write_bytes(path, whole, n);
    check_npy_refused(path, "no .npy file");
    free(whole);
    check_npy_refused(scratch_path("missing.npy"), "missing.npy");
    write_bytes(scratch_path("none.json"), "{\"clusters\": []}", 16);
    check_npy_refused(scratch_path("none.json"), "no colours");
}

/* What Hugging Face's loader needs to see in the header. */
static void test_hugging_face_names(void) {
    Model m;
    Safetensors file;
    CHECK(!model_init(&m, small), "%s", error_text());
    CHECK(!model_save(&m, scratch_path("hf"), "F16"), "%s", error_text());
    CHECK(!safetensors_open(&file, scratch_path("hf/model.safetensors")), "%s", error_text());
    static const struct {
        const char *name;
        int rows, cols; // rows 0: one dimension
    } expected[] = {{"transformer.wte.weight", 10, 12},
                    {"transformer.wpe.weight", 25, 12},
                    {"transformer.h.2.ln_1.weight", 0, 12},
                    {"transformer.h.2.attn.c_attn.weight", 12, 36},
                    {"transformer.h.2.attn.c_attn.bias", 0, 36},
                    {"transformer.h.2.attn.c_proj.bias", 0, 12},
                    {"transformer.h.0.mlp.c_fc.weight", 12, 48},
                    {"transformer.h.0.mlp.c_fc.bias", 0, 48},
                    {"transformer.h.1.mlp.c_proj.weight", 48, 12},
                    {"transformer.h.1.mlp.c_proj.bias", 0, 12},
                    {"transformer.ln_f.weight", 0, 12},
                    {"lm_head.weight", 9, 12},
                    {"score.weight", 4, 12}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const Stored *s = safetensors_find(&file, expected[i].name);
        CHECK(s && s->shape[0] == (expected[i].rows ? expected[i].rows : expected[i].cols) &&
                  s->n_dim == (expected[i].rows ? 2 : 1),
              "%s", expected[i].name);
    }
    const char *format = safetensors_metadata(&file, "format");
    CHECK(format && !strcmp(format, "pt"), "metadata format");
    safetensors_close(&file);
    Json *config = json_read(scratch_path("hf/config.json"));
    const Json *vocab = json_get(config, "vocab_size"), *type = json_get(config, "model_type");
    CHECK(vocab && vocab->number == 10, "vocab_size");
    CHECK(type && type->text && !strcmp(type->text, "imagegpt"), "model_type");
    free(config);
    model_free(&m);
}

/* A directory that transformers saved (data/make_hf.py), in BF16: its logits and palette indices.
   */
static void test_hugging_face_model(void) {
    enum { B = 3, T = 16, K = 12 };
    Model m;
    Safetensors file;
    CHECK(!model_load(&m, "data/fixture/hf"), "%s", error_text());
    CHECK(!safetensors_open(&file, "data/fixture/hf/expected.safetensors"), "%s", error_text());
    real *tokens = stored_tensor(&file, "tokens"), *logits = stored_tensor(&file, "logits");
    real *rgb = stored_tensor(&file, "rgb"), *indices = stored_tensor(&file, "indices");
    uint16_t in[B * T], nearest[B * T];
    uint8_t bytes[B * T * 3];
    for (int i = 0; i < B * T; i++) in[i] = (uint16_t)tokens[i];
    for (int i = 0; i < B * T * 3; i++) bytes[i] = (uint8_t)rgb[i];
    Activations *acts = activations_new(&m.config, B, KEEP_NOTHING);
    model_forward(&m, acts, in, NULL, B);
    const real *is = model_logits(&m, acts, B);
    double worst = 0, largest = 0;
    for (int i = 0; i < B * T * K; i++) {
        worst = fmax(worst, fabs((double)is[i] - (double)logits[i]));
        largest = fmax(largest, fabs((double)logits[i]));
    }
    CHECK(worst < 1e-5 && largest > 1, "logits up to %g are off by %g", largest, worst);
    palette_index(nearest, bytes, B * T, m.palette, K);
    for (int i = 0; i < B * T; i++) CHECK(nearest[i] == indices[i], "pixel %d: %d", i, nearest[i]);
    safetensors_close(&file);
    real *lists[] = {tokens, logits, rgb, indices};
    for (int i = 0; i < 4; i++) free(lists[i]);
    free(acts);
    model_free(&m);
}

/* F16 weights come back rounded to 11 bits. */
static void test_half_weights(void) {
    Model m, back;
    CHECK(!model_init(&m, small), "%s", error_text());
    fill(m.params, m.n_params, 9, 0.3);
    CHECK(!model_save(&m, scratch_path("half"), "F16"), "%s", error_text());
    CHECK(!model_load(&back, scratch_path("half")), "%s", error_text());
    double worst = 0;
    for (size_t i = 0; i < m.n_params; i++) {
        double was = (double)m.params[i], is = (double)back.params[i];
        worst = fmax(worst, fabs(is - was) / fmax(fabs(was), 0x1p-14));
    }
    CHECK(worst > 0 && worst <= 0x1p-11, "off by %g", worst);
    model_free(&back);
    model_free(&m);
}

/* A bias that is not zero, a tensor of another shape and one that is missing are refused by name.
   The heads may be missing as transformers leaves them out. */
static void test_foreign_weights(void) {
    Model m, back;
    char *dir = scratch_path("foreign"), path[300];
    CHECK(!model_init(&m, small), "%s", error_text());
    CHECK(!model_save(&m, dir, "F32"), "%s", error_text());
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    Safetensors file;
    CHECK(!safetensors_open(&file, path), "%s", error_text());
    int n = file.n_tensor;
    Stored *changed = calloc((size_t)n, sizeof *changed);
    char(*names)[80] = calloc((size_t)n, sizeof *names);
    for (int i = 0; i < n; i++) {
        snprintf(names[i], sizeof *names, "%s", file.tensors[i].name);
        changed[i] = file.tensors[i];
        changed[i].name = names[i];
        changed[i].dtype = "F32";
        changed[i].data = NULL;
    }
    safetensors_close(&file);
    real one[36] = {1};
    enum { BIAS, SHAPE, MISSING, NO_HEADS, CLASSIFIER, BARE };
    for (int what = BIAS; what <= BARE; what++) {
        Stored *list = calloc((size_t)n, sizeof *list);
        int count = 0;
        const char *expected = what == BIAS      ? "h.1.attn.c_attn.bias"
                               : what <= MISSING ? "h.2.ln_2.weight"
                                                 : "lm_head.weight";
        for (int i = 0; i < n; i++) {
            list[count] = changed[i];
            if (strstr(names[i], expected)) {
                if (what == BIAS) list[count].data = one;
                if (what == SHAPE) list[count].shape[0] = 11;
                if (what >= MISSING) continue;
            }
            if ((what == NO_HEADS || what == BARE) && !strcmp(names[i], "score.weight")) continue;
            if (what >= CLASSIFIER && strstr(names[i], "ln_f")) list[count].data = one;
            if (what == BARE) list[count].name += strlen("transformer.");
            count++;
        }
        CHECK(!safetensors_write(path, list, count, NULL), "%s", error_text());
        if (what < CLASSIFIER) {
            CHECK(model_load(&back, dir) && strstr(error_text(), expected), "%d: %s", what,
                  error_text());
        } else if (!model_load(&back, dir)) {
            CHECK(back.config.n_class == (what == CLASSIFIER ? small.n_class : 0), "%d classes",
                  back.config.n_class);
            double sum = 0;
            for (size_t i = 0; i < back.n_params; i++) sum += (double)back.params[i];
            CHECK(sum == 1, "ln_f has not come in");
            model_free(&back);
        } else CHECK(0, "%d: %s", what, error_text());
        free(list);
    }
    free(changed);
    free(names);
    model_free(&m);
}

/* ---- 11 probe ------------------------------------------------------------------------------- */

static double most_apart(const real *a, const real *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)a[i] - (double)b[i]);
        if (!(error <= worst)) worst = error;
    }
    return worst;
}

static void test_pytorch_features(void) {
    enum { B = 3, T = 16, D = 16, LAYERS = 3 };
    Fixture f;
    fixture_open(&f, OBJECTIVE_AR);
    real *all = filled(B * LAYERS * D, 1, 0), layer[B * D];
    model_features(&f.model, f.acts, f.tokens, NULL, B, POOL_MEAN, 0, LAYERS, 1, all);
    for (int l = 0; l < LAYERS; l++) {
        char name[4];
        for (int b = 0; b < B; b++)
            memcpy(layer + b * D, all + (b * LAYERS + l) * D, D * sizeof *layer);
        snprintf(name, sizeof name, "%d", l);
        check_near(&f, "features.", name, layer, B * D);
    }
    free(all);
    fixture_close(&f);
}

/* A range of layers is those layers of all; scales add up; unpooled features have the pooled ones
   as their mean and the network's output as the last; threads change no bit. */
static void test_features_agree(void) {
    enum { B = 3, T = 16, D = 16, LAYERS = 3 };
    const double tolerance = IS_DOUBLE ? 1e-14 : 1e-5;
    for (int kind = OBJECTIVE_AR; kind <= OBJECTIVE_BERT; kind++) {
        Fixture f;
        fixture_open(&f, kind);
        const uint8_t *mask = kind == OBJECTIVE_BERT ? f.mask : NULL;
        real *all = filled(B * LAYERS * D, 1, 0), *some = filled(B * 2 * D, 1, 0);
        real *long_ = filled(B * LAYERS * T * D, 1, 0), *mean = filled(B * LAYERS * D, 1, 0);
        real *threads = filled(B * LAYERS * D, 1, 0);
        model_features(&f.model, f.acts, f.tokens, mask, B, POOL_MEAN, 0, LAYERS, 1, all);
        int threads_were = threads_get();
        threads_set(threads_were == 1 ? 3 : 1);
        Activations *other = activations_new(&f.model.config, B, KEEP_NOTHING);
        model_features(&f.model, other, f.tokens, mask, B, POOL_MEAN, 0, LAYERS, 1, threads);
        CHECK(!memcmp(all, threads, B * LAYERS * D * sizeof *all), "threads change bits");
        threads_set(threads_were);
        for (int half = 0; half < 2; half++)
            model_features(&f.model, f.acts, f.tokens, mask, B, POOL_MEAN, 1, 2, 0.5, some);
        for (int b = 0; b < B; b++)
            CHECK(most_apart(some + b * 2 * D, all + (b * LAYERS + 1) * D, 2 * D) < tolerance,
                  "layers 1 and 2 differ in image %d", b);
        model_features(&f.model, f.acts, f.tokens, mask, B, POOL_NONE, 0, LAYERS, 1, long_);
        for (int i = 0; i < B * LAYERS * T * D; i++) mean[i / (T * D) * D + i % D] += long_[i] / T;
        CHECK(most_apart(mean, all, B * LAYERS * D) < tolerance, "the mean of positions differs");
        const real *output = model_forward(&f.model, f.acts, f.tokens, mask, B);
        for (int b = 0; b < B; b++)
            CHECK(most_apart(output + b * T * D, long_ + (b * LAYERS + 2) * T * D, T * D) == 0,
                  "the last layer is not the output, image %d", b);
        real *lists[] = {all, some, long_, mean, threads};
        for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) free(lists[i]);
        free(other);
        fixture_close(&f);
    }
}

/* 1/2 (x - c)' A (x - c) with A = R'R / n + 0.01 I, and sum cosh(x - c): both are least at c. */
enum { DIM = 30 };

typedef struct {
    real a[DIM * DIM], optimum[DIM];
    int calls;
} Bowl;

static double quadratic(void *context, const real *x, real *gradient) {
    Bowl *bowl = context;
    double value = 0;
    bowl->calls++;
    for (int i = 0; i < DIM; i++) {
        double sum = 0;
        for (int j = 0; j < DIM; j++)
            sum += (double)bowl->a[i * DIM + j] * ((double)x[j] - (double)bowl->optimum[j]);
        gradient[i] = (real)sum;
        value += 0.5 * sum * ((double)x[i] - (double)bowl->optimum[i]);
    }
    return value;
}

static double steep(void *context, const real *x, real *gradient) {
    Bowl *bowl = context;
    double value = 0;
    for (int i = 0; i < DIM; i++) {
        gradient[i] = (real)sinh((double)x[i] - (double)bowl->optimum[i]);
        value += cosh((double)x[i] - (double)bowl->optimum[i]);
    }
    return value;
}

static void test_lbfgs(void) {
    Bowl bowl = {.calls = 0};
    real r[DIM * DIM], x[DIM];
    const double goal = IS_DOUBLE ? 1e-10 : 1e-5, near = IS_DOUBLE ? 1e-7 : 1e-2;
    fill(r, DIM * DIM, 1, 1);
    fill(bowl.optimum, DIM, 2, 3);
    for (int i = 0; i < DIM * DIM; i++) {
        double sum = i / DIM == i % DIM ? 0.01 : 0;
        for (int k = 0; k < DIM; k++)
            sum += (double)r[k * DIM + i / DIM] * (double)r[k * DIM + i % DIM] / DIM;
        bowl.a[i] = (real)sum;
    }
    fill(x, DIM, 3, 1);
    int steps = lbfgs(quadratic, &bowl, x, DIM, 1000, goal);
    CHECK(steps > 0 && steps < 400 && most_apart(x, bowl.optimum, DIM) < near,
          "quadratic: off by %g after %d steps", most_apart(x, bowl.optimum, DIM), steps);
    CHECK(bowl.calls < 2 * steps + 10, "%d evaluations for %d steps", bowl.calls, steps);
    fill(x, DIM, 3, 1);
    CHECK(lbfgs(quadratic, &bowl, x, DIM, 1000, 0.1) < steps / 2, "does not end at the tolerance");
    CHECK(lbfgs(quadratic, &bowl, bowl.optimum, DIM, 1000, goal) == 0, "leaves the optimum");
    fill(x, DIM, 3, 1);
    CHECK(lbfgs(quadratic, &bowl, x, DIM, 3, goal) == 3, "does not end after three steps");
    for (int i = 0; i < DIM; i++) x[i] = bowl.optimum[i] + (real)(i % 2 ? 20 : -15);
    steps = lbfgs(steep, &bowl, x, DIM, 1000, goal);
    CHECK(steps > 0 && steps < 400 && most_apart(x, bowl.optimum, DIM) < near,
          "cosh: off by %g after %d steps", most_apart(x, bowl.optimum, DIM), steps);
}

/* The optimum of a strictly convex problem, found by many plain steps down the gradient. */
static void test_logistic_optimum(void) {
    enum { N = 80, WIDTH = 3, C = 4, SIZE = C * WIDTH, STEPS = 20000 };
    const double l2 = 0.05, tolerance = IS_DOUBLE ? 1e-10 : 1e-6;
    real *x = filled(N * WIDTH, 1, 1), w[SIZE + C] = {0}, plain[SIZE + C];
    double v[SIZE + C] = {0};
    uint16_t labels[N];
    for (int i = 0; i < N; i++)
        labels[i] = (uint16_t)((x[i * WIDTH] > 0 ? 2 : 0) + (random_bits(1, 2, (uint64_t)i) & 1));
    CHECK(logistic_fit(w, x, labels, N, WIDTH, C, l2, tolerance) > 0, "%s", error_text());
    for (int step = 0; step < STEPS; step++) {
        double g[SIZE + C] = {0};
        for (int i = 0; i < SIZE; i++) g[i] = l2 * v[i];
        for (int i = 0; i < N; i++) {
            double p[C], sum = 0;
            for (int k = 0; k < C; k++) {
                p[k] = v[SIZE + k];
                for (int j = 0; j < WIDTH; j++) p[k] += v[k * WIDTH + j] * (double)x[i * WIDTH + j];
                sum += p[k] = exp(p[k]);
            }
            for (int k = 0; k < C; k++) {
                double dp = (p[k] / sum - (labels[i] == k)) / N;
                for (int j = 0; j < WIDTH; j++) g[k * WIDTH + j] += dp * (double)x[i * WIDTH + j];
                g[SIZE + k] += dp;
            }
        }
        for (int i = 0; i < SIZE + C; i++) v[i] -= 0.5 * g[i];
    }
    for (int i = 0; i < SIZE + C; i++) plain[i] = (real)v[i];
    CHECK(most_apart(w, plain, SIZE + C) < (IS_DOUBLE ? 1e-7 : 1e-3), "off by %g",
          most_apart(w, plain, SIZE + C));
    int correct = 0;
    for (int i = 0; i < N; i++) {
        int best = 0;
        double most = -INFINITY;
        for (int k = 0; k < C; k++) {
            double logit = v[SIZE + k];
            for (int j = 0; j < WIDTH; j++) logit += v[k * WIDTH + j] * (double)x[i * WIDTH + j];
            if (logit > most) best = k, most = logit;
        }
        correct += best == labels[i];
    }
    double accuracy = logistic_accuracy(w, x, labels, N, WIDTH, C);
    CHECK(accuracy == (double)correct / N, "accuracy %g, not %d / %d", accuracy, correct, N);
    free(x);
}

/* Classes far apart are told apart without a mistake; labels that have nothing to do with the
   features are guessed as well as by chance. Columns next to the features must not be read. */
static void test_probe(void) {
    enum { N = 1500, WIDTH = 12, ROW = WIDTH + 2, C = 4 };
    real *x = filled(N * ROW, 1, 1);
    int labels[N];
    uint8_t part[N];
    Probe probe;
    for (int i = 0; i < N; i++) {
        part[i] = i % 3 == 0 ? PART_TEST : i % 10 == 1 ? PART_VALIDATION : PART_TRAIN;
        labels[i] = (int)(random_bits(2, 1, (uint64_t)i) % C);
        x[i * ROW] = x[i * ROW + ROW - 1] = (real)NAN;
    }
    CHECK(!probe_fit(&probe, x + 1, ROW, WIDTH, labels, part, N, C), "%s", error_text());
    CHECK(fabs(probe.accuracy[PART_TEST] - 1.0 / C) < 0.07, "random labels: test accuracy %g",
          probe.accuracy[PART_TEST]);
    for (int i = 0; i < N; i++) { // features small beside their mean, one constant in training
        x[i * ROW + 1 + labels[i]] += 12;
        for (int j = 1; j < WIDTH; j++) x[i * ROW + j] = 50 + x[i * ROW + j] / 100;
        x[i * ROW + WIDTH] = part[i] == PART_TRAIN ? 1000 : 1000 + i;
    }
    CHECK(!probe_fit(&probe, x + 1, ROW, WIDTH, labels, part, N, C), "%s", error_text());
    for (int k = PART_TRAIN; k <= PART_TEST; k++)
        CHECK(probe.accuracy[k] == 1, "separable: accuracy %g of part %d", probe.accuracy[k], k);
    for (int i = 0; i < N; i++)
        if (part[i] == PART_VALIDATION) part[i] = PART_NONE;
    CHECK(probe_fit(&probe, x + 1, ROW, WIDTH, labels, part, N, C) == -1 &&
              strstr(error_text(), "validate"),
          "%s", error_text());
    free(x);
}

static void test_label_splits(void) {
    enum { N = 400, C = 3, EACH = 7, DRAWS = 3 };
    int labels[N], alike = 0;
    uint8_t whole[N], part[DRAWS][N];
    for (int i = 0; i < N; i++) labels[i] = i % 8 == 0 ? -1 : i % C;
    const Images set = {.n = N, .labels = labels};
    CHECK(!labels_split(&set, C, 0, 1, 0, whole), "%s", error_text());
    for (int draw = 0; draw < DRAWS; draw++)
        CHECK(!labels_split(&set, C, EACH, 1, draw, part[draw]), "%s", error_text());
    for (int k = 0; k < C; k++) {
        int all = 0, held = 0, used = 0, drawn[DRAWS] = {0};
        for (int i = 0; i < N; i++) {
            if (labels[i] != k) continue;
            all++;
            held += whole[i] == PART_VALIDATION;
            used += whole[i] == PART_TRAIN;
            for (int draw = 0; draw < DRAWS; draw++) drawn[draw] += part[draw][i] == PART_TRAIN;
        }
        CHECK(held == (10 * all + 50) / 100 && used == all - held, "class %d: %d of %d held", k,
              held, all);
        for (int draw = 0; draw < DRAWS; draw++)
            CHECK(drawn[draw] == EACH, "class %d, draw %d: %d labels", k, draw, drawn[draw]);
    }
    for (int i = 0; i < N; i++) {
        CHECK(labels[i] >= 0 || whole[i] == PART_NONE, "an unlabelled picture is used");
        for (int draw = 0; draw < DRAWS; draw++)
            CHECK((whole[i] == PART_VALIDATION) == (part[draw][i] == PART_VALIDATION),
                  "draw %d validates on other pictures", draw);
        alike += part[0][i] == PART_TRAIN && part[1][i] == PART_TRAIN;
    }
    CHECK(alike < C * EACH / 2, "two draws share %d of %d labels", alike, C * EACH);
    CHECK(labels_split(&set, C, N / C, 1, 0, whole) == -1 && strstr(error_text(), "class 0"), "%s",
          error_text());
}

static void test_npy(void) {
    const real values[] = {1, -2.5, 3, 4, 5, 6};
    Stored array = {.dtype = "F32", .n_dim = 2, .shape = {3, 2}, .data = values};
    size_t n;
    CHECK(!npy_write(scratch_path("a.npy"), &array), "%s", error_text());
    uint8_t *bytes = read_bytes(scratch_path("a.npy"), &n);
    size_t length = n > 10 ? (size_t)bytes[8] + 256u * bytes[9] : 0;
    CHECK(n == 10 + length + 24 && !memcmp(bytes, "\x93NUMPY\1\0", 8), "%zu bytes", n);
    CHECK((10 + length) % 64 == 0 && bytes[9 + length] == '\n', "the header takes %zu", length);
    CHECK(strstr((char *)bytes + 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (3,2,)}") ==
              (char *)bytes + 10,
          "%.80s", bytes + 10);
    static const uint8_t minus_two_and_a_half[] = {0, 0, 0x20, 0xc0};
    CHECK(!memcmp(bytes + 10 + length + 4, minus_two_and_a_half, 4), "values are wrong");
    free(bytes);
    array = (Stored){.dtype = "I64", .n_dim = 1, .shape = {2}, .data = values};
    CHECK(!npy_write(scratch_path("b.npy"), &array), "%s", error_text());
    bytes = read_bytes(scratch_path("b.npy"), &n);
    CHECK(strstr((char *)bytes + 10, "'<i8'") && strstr((char *)bytes + 10, "(2,)"), "%.80s",
          bytes + 10);
    CHECK(bytes[n - 16] == 1 && bytes[n - 8] == 0xfe && bytes[n - 1] == 0xff, "integers are wrong");
    free(bytes);
    array.dtype = "BF16";
    CHECK(npy_write(scratch_path("c.npy"), &array) == -1 && strstr(error_text(), "BF16"), "%s",
          error_text());
}

/* ---- 12 pictures ---------------------------------------------------------------------------- */

static uint32_t be32(const uint8_t *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* CRC-32 bit by bit, as the PNG specification defines it. */
static uint32_t plain_crc(const uint8_t *p, size_t n) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
    }
    return ~crc;
}

static void test_png(void) {
    enum { W = 211, H = 131 }; // more than one stored block
    uint8_t *rgb = calloc(3 * W * H, 1), *raw = calloc(H * (3 * W + 1) + 100000, 1);
    for (int i = 0; i < 3 * W * H; i++) rgb[i] = (uint8_t)random_bits(1, 1, (uint64_t)i);
    char *path = scratch_path("picture.png");
    size_t n, used = 0;
    CHECK(!png_write(path, rgb, W, H), "%s", error_text());
    uint8_t *png = read_bytes(path, &n);
    CHECK(n > 60 && !memcmp(png, "\x89PNG\r\n\x1a\n", 8), "no PNG signature");
    int chunks = 0;
    for (size_t at = 8; at + 12 <= n; chunks++) {
        size_t size = be32(png + at);
        const uint8_t *type = png + at + 4, *data = type + 4;
        CHECK(be32(data + size) == plain_crc(type, size + 4), "%.4s: wrong CRC",
              (const char *)type);
        if (!memcmp(type, "IHDR", 4))
            CHECK(be32(data) == W && be32(data + 4) == H && data[8] == 8 && data[9] == 2, "header");
        if (!memcmp(type, "IDAT", 4)) {
            CHECK((data[0] * 256 + data[1]) % 31 == 0, "zlib header");
            const uint8_t *block = data + 2;
            for (int last = 0; !last;) {
                size_t length = block[1] + 256u * block[2];
                last = block[0] & 1;
                CHECK(block[0] < 2 && (length ^ 0xffff) == block[3] + 256u * block[4], "block");
                memcpy(raw + used, block + 5, length);
                used += length;
                block += 5 + length;
            }
            uint64_t low = 1, high = 0;
            for (size_t i = 0; i < used; i++) high += low += raw[i];
            CHECK(be32(block) == ((high % 65521) << 16 | low % 65521), "Adler-32");
        }
        at += size + 12;
    }
    CHECK(chunks == 3 && used == H * (3 * W + 1), "%d chunks, %zu bytes", chunks, used);
    for (int y = 0; y < H; y++)
        CHECK(raw[y * (3 * W + 1)] == 0 &&
                  !memcmp(raw + y * (3 * W + 1) + 1, rgb + y * 3 * W, 3 * W),
              "row %d differs", y);
    CHECK(png_write(scratch_path("no/such/folder.png"), rgb, W, H) == -1 &&
              strstr(error_text(), "folder.png"),
          "%s", error_text());
    free(png);
    free(raw);
    free(rgb);
}

/* Two pictures of 3 x 3: two lines, the last without lower pixels. */
static void test_terminal(void) {
    const real palette[] = {-1, -1, -1, 1, 1, 1, 1, -1, -1};
    const uint16_t tokens[18] = {0, 1, 2, 1, 1, 1, 2, 2, 2, 1, 1, 1, 0, 0, 0, 1, 1, 1};
    FILE *f = fopen(scratch_path("terminal"), "wb");
    terminal_rows(f, tokens, 2, 3, 0, palette);
    terminal_rows(f, tokens, 1, 3, 2, palette);
    fclose(f);
    size_t n;
    char *text = (char *)read_bytes(scratch_path("terminal"), &n);
    const char *first = "\033[38;2;0;0;0m\033[48;2;255;255;255m\xe2\x96\x80\033[38;2;255;255;255m";
    CHECK(text && !strncmp(text, first, strlen(first)), "%s", text);
    const char *last = strchr(text, '\n');
    CHECK(last && strstr(last, "38;2;255;0;0m") && !strstr(last, "48;2;"), "%s", last);
    int blocks = 0;
    for (const char *p = text; (p = strstr(p, "\xe2\x96\x80")); p++) blocks++;
    CHECK(blocks == 9 && !strcmp(text + n - 5, "\033[0m\n"), "%d blocks", blocks);
    free(text);
}

static void test_chart(void) {
    const double x[] = {0, 1, 2}, y[] = {1, NAN, 3};
    const Series series[] = {{"a & b < c", "#123456", 3, x, y, 1}};
    size_t n;
    CHECK(!chart_write(scratch_path("chart.svg"), "title", "x", "y", series, 1), "%s",
          error_text());
    char *svg = (char *)read_bytes(scratch_path("chart.svg"), &n);
    CHECK(svg && !strncmp(svg, "<svg ", 5) && strstr(svg, "</svg>"), "no SVG");
    CHECK(strstr(svg, "a &amp; b &lt; c") && !strstr(svg, "nan"), "names or NaN are not escaped");
    int dots = 0;
    for (const char *p = svg; (p = strstr(p, "<circle")); p++) dots++;
    CHECK(dots == 2, "%d dots for two points", dots);
    free(svg);
    const Series flat[] = {{"flat", "#000", 2, x, (const double[]){2, 2}, 0}};
    CHECK(!chart_write(scratch_path("flat.svg"), "", "", "", flat, 1), "%s", error_text());
}

/* ---- the whole ------------------------------------------------------------------------------ */

/* A short run on the real pictures learns: the loss on pictures not trained on falls well below
   what counting colours gives. */
static void test_training_learns(void) {
    enum { B = 8, PX = 8, T = PX * PX, STEPS = 120, N_TEST = 64 };
    Dataset data;
    Model m;
    Config c = {.n_px = PX, .n_vocab = 16, .n_embd = 32, .n_head = 2, .n_layer = 2};
    CHECK(!dataset_read(&data, "data/emoji", PX), "%s", error_text());
    CHECK(data.train.n == 2195 && data.test.n == 393 && data.n_class == 9,
          "data/emoji has changed");
    CHECK(!model_init(&m, c), "%s", error_text());
    model_randomise(&m, 1);
    CHECK(palette_build(m.palette, 16, data.train.rgb, (size_t)data.train.n * T, 1,
                        PALETTE_ITERATIONS, NULL) == 16,
          "%s", error_text());
    CHECK(!images_quantise(&data.train, m.palette, 16) &&
              !images_quantise(&data.test, m.palette, 16),
          "%s", error_text());
    Activations *acts = activations_new(&c, N_TEST, KEEP_ALL);
    size_t n = m.n_params;
    real *grads = filled(n, 1, 0), *first = filled(n, 1, 0), *second = filled(n, 1, 0);
    Batch test = {N_TEST, data.test.tokens, NULL, NULL};
    double before = objective(&m, acts, &test, 1, 0, 0, NULL).gen / N_TEST, count[16] = {0},
           unigram = 0;
    CHECK(fabs(before - log(16)) < 1e-3, "starts at %g, not ln 16", before);
    for (int step = 0; step < STEPS; step++) {
        Batch batch = {B, data.train.tokens + step * B * T, NULL, NULL};
        objective(&m, acts, &batch, 1, 0, 1.0 / B, grads);
        adam_step(m.params, grads, first, second, n, step + 1,
                  learning_rate(step, STEPS, 20, 0.01));
    }
    double after = objective(&m, acts, &test, 1, 0, 0, NULL).gen / N_TEST;
    for (int i = 0; i < N_TEST * T; i++) count[data.test.tokens[i]]++;
    for (int k = 0; k < 16; k++)
        if (count[k] > 0) unigram -= count[k] / (N_TEST * T) * log(count[k] / (N_TEST * T));
    CHECK(after < 0.8 * unigram, "%g after training, %g by counting colours", after, unigram);
    free(grads);
    free(first);
    free(second);
    free(acts);
    model_free(&m);
    dataset_free(&data);
}

/* Run ./igpt with these arguments; returns its exit status and leaves what it printed in output. */
static char output[1 << 16];

static int run_igpt(const char *format, ...) {
    char arguments[1024], line[1200];
    va_list args;
    va_start(args, format);
    vsnprintf(arguments, sizeof arguments, format, args);
    va_end(args);
    snprintf(line, sizeof line, "./igpt %s 2>&1", arguments);
    FILE *f = popen(line, "r");
    size_t n = f ? fread(output, 1, sizeof output - 1, f) : 0;
    output[n] = 0;
    int status = f ? pclose(f) : -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect(int status, const char *word, const char *arguments) {
    int is = run_igpt("%s", arguments);
    CHECK(is == status && strstr(output, word), "igpt %s: status %d, expected %d and \"%s\": %s",
          arguments, is, status, word, output);
    int lines = 0;
    for (const char *p = output; *p; p++) lines += *p == '\n';
    CHECK(status != 2 || lines == 1, "igpt %s: %d lines for one error", arguments, lines);
}

static void test_command_line(void) {
    char line[600];
    CHECK(run_igpt("--help") == 0 && strstr(output, "igpt train"), "%s", output);
    CHECK(run_igpt("train --help") == 0 && strstr(output, "--steps") && strstr(output, "--lr"),
          "%s", output);
    expect(2, "train", "trian");
    expect(2, "--steps", "train --step 5");
    expect(2, "needs a value", "train --steps");
    expect(2, "number", "train --steps many");
    expect(2, "whole number", "train --steps 1.5");
    expect(2, "--threads", "train --threads -1");
    expect(2, "no option", "train surplus");
    expect(2, "ar|bert", "train --objective gan");
    expect(2, "mask-prob", "train --mask-prob 0");
    expect(1, "n_head", "train --n-embd 30 --n-head 4");
    expect(2, "igpt-l", "train --preset huge");
    expect(2, "not empty", "eval --data ''");
    expect(1, "n_head", "bench --n-head 3");
    snprintf(line, sizeof line, "train --data no/such --out %s/unmade", scratch);
    expect(1, "no/such", line);
    CHECK(access(scratch_path("unmade"), F_OK) != 0, "a run that could not start left a folder");
    expect(1, "has --n-embd 128", "train --init data/emoji-ar --n-embd 64");
    expect(1, "no/such", "eval --model no/such");
    expect(1, "no/such", "sample --model no/such");
    expect(2, "needs a value", "complete --image --rows 3");
    expect(1, "no/such.ppm", "complete --model data/emoji-ar --image no/such.ppm");
    expect(1, "--rows 200", "complete --model data/emoji-ar --rows 200");
    expect(1, "no/such", "finetune --model no/such");
    expect(1, "no/such.npy", "palette --palette no/such.npy");
    snprintf(line, sizeof line, "train --steps 1 --out %s/file", scratch);
    write_bytes(scratch_path("file"), "", 0);
    expect(1, "/file", line);
    CHECK(run_igpt("info --preset igpt-l") == 0 && strstr(output, "parameters_millions 1362\n"),
          "%s", output);
}

static void check_same_file(const char *folder_a, const char *folder_b, const char *name) {
    char a[300], b[300];
    size_t n, m;
    snprintf(a, sizeof a, "%s/%s/%s", scratch, folder_a, name);
    snprintf(b, sizeof b, "%s/%s/%s", scratch, folder_b, name);
    uint8_t *x = read_bytes(a, &n), *y = read_bytes(b, &m);
    CHECK(x && y && n == m && !memcmp(x, y, n), "%s differs from %s", a, b);
    free(x);
    free(y);
}

/* Start ./igpt with these arguments, which write to scratch/folder; press Ctrl-C as soon as there
   is a state to resume from; then let `command` go on with it. */
static void stop_and_resume(const char *command, const char *arguments, const char *folder) {
    char line[2000];
    snprintf(line, sizeof line,
             "./igpt %s %s --out %s/%s 2>%s/said & pid=$!; n=0; "
             "until [ -e %s/%s/train_state.safetensors ] || [ $n -gt 2000 ]; "
             "do n=$((n+1)); sleep 0.01; done; kill -INT $pid; wait $pid",
             command, arguments, scratch, folder, scratch, scratch, folder);
    int status = system(line);
    size_t n;
    char *said = (char *)read_bytes(scratch_path("said"), &n);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1, "Ctrl-C: status %x", (unsigned)status);
    snprintf(line, sizeof line, "igpt %s --resume", command);
    CHECK(said && strstr(said, "stopped at step ") && strstr(said, line), "%s", said);
    free(said);
    CHECK(run_igpt("%s --resume --quiet --out %s/%s", command, scratch, folder) == 0, "%s", output);
}

/* The number behind this name in what the program printed. */
static double printed(const char *name) {
    size_t length = strlen(name);
    for (const char *line = output; line; line = strchr(line, '\n'), line += line != NULL)
        if (!strncmp(line, name, length) && line[length] == ' ') return atof(line + length);
    CHECK(0, "%s is not in: %s", name, output);
    return NAN;
}

/* Train, evaluate and sample by the program itself. A run that is stopped by Ctrl-C and resumed
   ends with the same bytes as one that was never stopped, and so does one on another number of
   threads. */
static void test_commands(void) {
    static const char sizes[] =
        "--n-layer 1 --n-embd 32 --n-head 2 --n-px 8 --n-vocab 12 --batch 4 "
        "--micro-batch 3 --steps 600 --eval-every 300 --save-every 20 --quiet";
    CHECK(run_igpt("train %s --out %s/whole", sizes, scratch) == 0 &&
              strstr(output, "\nunigram_nats "),
          "%s", output);
    CHECK(run_igpt("train %s --out %s/threads --threads 3", sizes, scratch) == 0, "%s", output);
    stop_and_resume("train", sizes, "parts");
    static const char *const files[] = {"model.safetensors", "config.json", "samples.png",
                                        "preprocessor_config.json"};
    for (int i = 0; i < 4; i++) {
        check_same_file("whole", "parts", files[i]);
        check_same_file("whole", "threads", files[i]);
    }
    CHECK(run_igpt("eval --model %s/whole", scratch) == 0 && strstr(output, "bits_per_dim "), "%s",
          output);
    CHECK(run_igpt("sample --model %s/whole --out %s/drawn --n 3", scratch, scratch) == 0, "%s",
          output);
    CHECK(access(scratch_path("drawn/samples.png"), R_OK) == 0, "no samples.png");
    CHECK(!strstr(output, "\033["), "escape sequences where no terminal is: %s", output);
}

/* A sheet of completions: 8 pixels in a cell of 96, with a gap of 4 around it. */
static void check_sheet(int columns, int rows) {
    size_t n;
    uint8_t *png = read_bytes(scratch_path("completed/completions.png"), &n);
    CHECK(n > 24 && be32(png + 16) == (uint32_t)(columns * 100 + 4) &&
              be32(png + 20) == (uint32_t)(rows * 100 + 4),
          "%u x %u", be32(png + 16), be32(png + 20));
    free(png);
}

static void test_complete(void) {
    char line[600];
    Model m;
    snprintf(line, sizeof line, "complete --model %s/model8 --out %s/completed --data data/emoji",
             scratch, scratch);
    Config c = {.n_px = 8, .n_vocab = 12, .n_embd = 8, .n_head = 2, .n_layer = 1};
    CHECK(!model_init(&m, c) && !model_save(&m, scratch_path("model8"), "F16"), "%s", error_text());
    model_free(&m);
    CHECK(run_igpt("%s --show 1", line) == 0 && strstr(output, "\xe2\x96\x80"), "%s", output);
    check_sheet(7, 8);
    write_bytes(scratch_path("a.ppm"), "P6 1 1 255\nabc", 14);
    CHECK(run_igpt("%s --image %s/a.ppm %s/a.ppm %s/a.ppm --n 2 --rows 0", line, scratch, scratch,
                   scratch) == 0,
          "%s", output);
    check_sheet(4, 3);
}

/* Count the lines of a text file. */
static int count_lines(const char *path) {
    size_t n;
    int lines = 0;
    char *text = (char *)read_bytes(path, &n);
    for (const char *p = text; p && *p; p++) lines += *p == '\n';
    free(text);
    return lines;
}

/* The probe by the program, of small random networks of both kinds. */
static void test_command_probe(void) {
    for (int kind = OBJECTIVE_AR; kind <= OBJECTIVE_BERT; kind++) {
        Config c = {
            .n_px = 4, .n_vocab = 6, .n_embd = 8, .n_head = 2, .n_layer = 2, .objective = kind};
        Model m;
        size_t n;
        CHECK(!model_init(&m, c), "%s", error_text());
        model_randomise(&m, 1);
        fill(m.palette, 18, 3, 0.5);
        CHECK(!model_save(&m, scratch_path("net"), "F32"), "%s", error_text());
        CHECK(run_igpt("probe --model %s/net --out %s/probed --labels-per-class 4 --concat 2 "
                       "--quiet --threads 1 --features %s/f.npy --masks 2",
                       scratch, scratch, scratch) == 0,
              "%s", output);
        CHECK(strstr(output, "\nbest_layer ") && strstr(output, "\njoined_test_accuracy "), "%s",
              output);
        int lines = count_lines(scratch_path("probed/probe.csv"));
        CHECK(lines == 1 + 3 + 1 + 1, "probe.csv has %d lines", lines);
        char *npy = (char *)read_bytes(scratch_path("f.npy"), &n);
        CHECK(npy && n == 128 + 2588 * 3 * 8 * 4 && strstr(npy + 10, "(2588,3,8,)"), "%zu bytes",
              n);
        free(npy);
        char *svg = (char *)read_bytes(scratch_path("probed/probe.svg"), &n);
        CHECK(svg && strstr(svg, "chance") && strstr(svg, "best: layer") && strstr(svg, "</svg>"),
              "no probe.svg");
        free(svg);
        model_free(&m);
    }
    char line[600];
    snprintf(line, sizeof line, "probe --model %s/net --pool max", scratch);
    expect(2, "mean|none", line);
    snprintf(line, sizeof line, "probe --model %s/net --labels-per-class 5000", scratch);
    expect(1, "not 5000", line);
    expect(1, "no/such", "probe --model no/such");
}

/* A BERT model: trained with the same bits on any threads, known as such by the later commands. */
static void test_bert_commands(void) {
    static const char sizes[] =
        "--n-layer 1 --n-embd 32 --n-head 2 --n-px 8 --n-vocab 12 --batch 8 "
        "--steps 150 --eval-every 150 --objective bert";
    CHECK(run_igpt("train %s --out %s/bert --threads 1", sizes, scratch) == 0 &&
              strstr(output, "no samples.png"),
          "%s", output);
    CHECK(printed("nats_per_pixel") < 0.9 * printed("unigram_nats"), "%s", output);
    CHECK(run_igpt("train %s --out %s/bert2 --threads 2", sizes, scratch) == 0, "%s", output);
    check_same_file("bert", "bert2", "model.safetensors");
    CHECK(run_igpt("eval --model %s/bert", scratch) == 0, "%s", output);
    double five = printed("nats_per_pixel");
    CHECK(run_igpt("eval --model %s/bert --masks 1 --threads 2", scratch) == 0, "%s", output);
    double one = printed("nats_per_pixel");
    CHECK(five != one && fabs(five - one) < 0.1, "five masks %g, one %g", five, one);
    CHECK(run_igpt("eval --model %s/bert --masks 1 --mask-prob 0.9", scratch) == 0, "%s", output);
    CHECK(printed("nats_per_pixel") > one + 0.1, "seeing less should be harder: %s", output);
    CHECK(run_igpt("sample --model %s/bert", scratch) == 1 && strstr(output, "BERT"), "%s", output);
    CHECK(run_igpt("train --init %s/bert --steps 1 --out %s/more", scratch, scratch) == 0 &&
              strstr(output, "no samples.png"),
          "--init forgets the objective: %s", output);
}

/* Fine-tuning beats naming the commonest class, for both objectives and from scratch; the directory
   that it writes is a model with a class head, which eval and a second fine-tuning know. */
static void test_finetune(void) {
    static const char sizes[] = "--n-layer 1 --n-embd 48 --n-head 2 --n-px 8 --n-vocab 16 --quiet "
                                "--threads 1";
    static const char *const kinds[] = {"ar", "bert"};
    char path[300];
    for (int i = 0; i < 2; i++) {
        CHECK(run_igpt("train %s --objective %s --batch 16 --steps 100 --out %s/%s0", sizes,
                       kinds[i], scratch, kinds[i]) == 0,
              "%s", output);
        CHECK(run_igpt("finetune --model %s/%s0 --out %s/%s1 --steps 150 --lr 0.003 --quiet "
                       "--threads 1",
                       scratch, kinds[i], scratch, kinds[i]) == 0,
              "%s", output);
        double accuracy = printed("accuracy");
        CHECK(accuracy > printed("majority_accuracy") + 0.05, "%s", output);
        CHECK(printed("validation_accuracy") > 0.45, "%s", output);
        CHECK(run_igpt("eval --model %s/%s1", scratch, kinds[i]) == 0, "%s", output);
        CHECK(printed("accuracy") == accuracy, "eval says otherwise than finetune: %s", output);
        CHECK(run_igpt("finetune --model %s/%s1 --out %s/again --steps 2 --lr 0", scratch, kinds[i],
                       scratch) == 0 &&
                  printed("accuracy") == accuracy,
              "a second fine-tuning lost the class head: %s", output);
    }
    Json *config = json_read(scratch_path("ar1/config.json"));
    const Json *label = json_get(json_get(config, "id2label"), "1");
    CHECK(label && label->text && !strcmp(label->text, "People & Body"), "id2label");
    free(config);
    snprintf(path, sizeof path, "%s/few", scratch);
    CHECK(
        run_igpt("finetune --model %s/ar0 --out %s --steps 20 --eval-every 7 --labels-per-class 2 "
                 "--gen-weight 0",
                 scratch, path) == 0 &&
            strstr(output, "on 18 pictures"),
        "%s", output);
    double majority = printed("majority_accuracy");
    CHECK(run_igpt("eval --model %s", path) == 0 && printed("majority_accuracy") == majority,
          "few labels changed what the commonest class is: %s", output);
    CHECK(run_igpt("finetune --model %s/ar0 --out %s --steps 150 --lr 0.003 --from-scratch --quiet "
                   "--threads 1",
                   scratch, path) == 0,
          "%s", output);
    CHECK(printed("accuracy") > printed("majority_accuracy") + 0.02, "%s", output);
    check_same_file("ar0", "few", "preprocessor_config.json");
}

static void test_finetune_resumed(void) {
    char arguments[600];
    CHECK(run_igpt(
              "train --n-layer 1 --n-embd 32 --n-head 2 --n-px 8 --n-vocab 12 --batch 8 --steps 40 "
              "--quiet --threads 1 --objective bert --out %s/pre",
              scratch) == 0,
          "%s", output);
    snprintf(arguments, sizeof arguments,
             "--model %s/pre --batch 8 --micro-batch 5 --steps 250 "
             "--eval-every 30 --save-every 10 --lr 0.003 --quiet",
             scratch);
    CHECK(run_igpt("finetune %s --out %s/fwhole --threads 1", arguments, scratch) == 0, "%s",
          output);
    double best = printed("best_step");
    CHECK(run_igpt("finetune %s --out %s/fthreads --threads 2", arguments, scratch) == 0, "%s",
          output);
    stop_and_resume("finetune", arguments, "fparts");
    CHECK(printed("best_step") == best, "best step %g without a stop: %s", best, output);
    check_same_file("fwhole", "fparts", "model.safetensors");
    check_same_file("fwhole", "fparts", "config.json");
    check_same_file("fwhole", "fthreads", "model.safetensors");
    CHECK(run_igpt("train --resume --out %s/fparts", scratch) == 1 &&
              strstr(output, "no run of igpt train"),
          "%s", output);
}

/* A palette built alone is read back by train, to the last digit, and so is one in an .npy file. */
static void test_palette_command(void) {
    CHECK(run_igpt("palette --n-px 8 --n-vocab 24 --out %s/pal", scratch) == 0 &&
              printed("colours") == 24 && printed("rms_error") < 20,
          "%s", output);
    double coarse = printed("rms_error");
    CHECK(access(scratch_path("pal/palette.png"), R_OK) == 0, "no palette.png");
    CHECK(
        run_igpt("train --palette %s/pal/preprocessor_config.json --n-px 8 --n-layer 1 --n-embd 16 "
                 "--n-head 1 --steps 1 --quiet --out %s/paltrain",
                 scratch, scratch) == 0,
        "%s", output);
    check_same_file("pal", "paltrain", "preprocessor_config.json");
    CHECK(run_igpt("palette --n-px 8 --n-vocab 48 --out %s/pal", scratch) == 0 &&
              printed("rms_error") < coarse,
          "twice the colours, error %g before: %s", coarse, output);
    char *npy =
        write_npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", npy_f4, 24);
    CHECK(run_igpt("palette --palette %s --out %s/pal2", npy, scratch) == 0 &&
              printed("colours") == 2,
          "%s", output);
    CHECK(run_igpt("palette --palette %s --n-vocab 3 --out %s/pal2", npy, scratch) == 1 &&
              strstr(output, "2 colours"),
          "%s", output);
}

/* ---- which tests there are ------------------------------------------------------------------ */

enum { BOTH, DOUBLE_ONLY, FLOAT_ONLY }; // where a test says something

static const struct {
    const char *name;
    void (*run)(void);
    int where;
} tests[] = {
    {"exp against libm", test_exp, BOTH},
    {"random numbers", test_random, BOTH},
    {"matmul, all transposes and odd sizes", test_matmul, BOTH},
    {"matmul, rows do not depend on their number", test_matmul_rows_alike, BOTH},
    {"gradient of RMS norm", test_rms_gradient, DOUBLE_ONLY},
    {"gradient of the embedding", test_embed_gradient, DOUBLE_ONLY},
    {"gradient of attention", test_attention_gradient, DOUBLE_ONLY},
    {"attention against a plain softmax", test_attention_plain, BOTH},
    {"gradient of the activation", test_gelu_gradient, DOUBLE_ONLY},
    {"gradient of cross entropy", test_cross_entropy_gradient, DOUBLE_ONLY},
    {"gradient of every tensor, every objective", test_model_gradients, DOUBLE_ONLY},
    {"recomputed blocks give the same bits", test_recompute, BOTH},
    {"gradients add up over passes", test_accumulation, BOTH},
    {"PyTorch's numbers: L_AR", test_pytorch_ar, BOTH},
    {"PyTorch's numbers: L_BERT", test_pytorch_bert, BOTH},
    {"PyTorch's numbers: L_GEN + L_CLF", test_pytorch_joint, BOTH},
    {"PyTorch's numbers: three steps of Adam", test_pytorch_adam, BOTH},
    {"learning rate", test_learning_rate, BOTH},
    {"BERT's masks", test_bert_mask, BOTH},
    {"a missing label adds nothing", test_missing_label, BOTH},
    {"published parameter counts", test_parameter_counts, BOTH},
    {"initial values", test_initial_values, BOTH},
    {"same bits for 1, 2, 3 and 5 threads", test_same_bits_for_all_threads, BOTH},
    {"k-means against brute force", test_kmeans_brute_force, BOTH},
    {"palette of few colours", test_palette_few_colours, BOTH},
    {"quantisation and its ties", test_quantisation, BOTH},
    {"resize exact values", test_resize_exact_values, FLOAT_ONLY},
    {"resize against definition", test_resize_against_definition, FLOAT_ONLY},
    {"resize large and white", test_resize_large_and_white, FLOAT_ONLY},
    {"resize crops the centre", test_resize_crops_the_centre, FLOAT_ONLY},
    {"resize refuses bad sizes", test_resize_refuses_bad_sizes, FLOAT_ONLY},
    {"cifar10", test_cifar10, FLOAT_ONLY},
    {"cifar100", test_cifar100, FLOAT_ONLY},
    {"stl10", test_stl10, FLOAT_ONLY},
    {"idx", test_idx, FLOAT_ONLY},
    {"idx bad headers", test_idx_bad_headers, FLOAT_ONLY},
    {"packed files are named", test_packed_files_are_named, FLOAT_ONLY},
    {"dataset refuses bad records", test_dataset_refuses_bad_records, FLOAT_ONLY},
    {"dataset refuses two formats", test_dataset_refuses_two_formats, FLOAT_ONLY},
    {"image read", test_image_read, FLOAT_ONLY},
    {"image read maxval", test_image_read_maxval, FLOAT_ONLY},
    {"image read refuses", test_image_read_refuses, FLOAT_ONLY},
    {"folder of splits", test_folder_of_splits, FLOAT_ONLY},
    {"folder without test", test_folder_without_test, FLOAT_ONLY},
    {"folder is split by itself", test_folder_is_split_by_itself, FLOAT_ONLY},
    {"folder without classes", test_folder_without_classes, FLOAT_ONLY},
    {"flip", test_flip, FLOAT_ONLY},
    {"crop padded", test_crop_padded, FLOAT_ONLY},
    {"split for validation", test_split_for_validation, FLOAT_ONLY},
    {"json grammar", test_json_grammar, BOTH},
    {"json cut short", test_json_cut_short, BOTH},
    {"json values", test_json_values, BOTH},
    {"json limits", test_json_limits, BOTH},
    {"json read", test_json_read, BOTH},
    {"safetensors refused", test_safetensors_refused, BOTH},
    {"safetensors long header", test_safetensors_long_header, BOTH},
    {"safetensors allowed", test_safetensors_allowed, BOTH},
    {"safetensors unread dtypes", test_safetensors_unread_dtypes, BOTH},
    {"safetensors dtypes", test_safetensors_dtypes, BOTH},
    {"safetensors round trip", test_safetensors_round_trip, BOTH},
    {"safetensors aligned", test_safetensors_aligned, BOTH},
    {"safetensors half", test_safetensors_half, BOTH},
    {"safetensors half patterns", test_safetensors_half_patterns, BOTH},
    {"safetensors write refused", test_safetensors_write_refused, BOTH},
    {"safetensors cut while open", test_safetensors_cut_while_open, BOTH},
    {"safetensors fixture", test_safetensors_fixture, BOTH},
    {"cached sampling gives forward's logits", test_cache_is_forward, BOTH},
    {"the trained model draws what it drew", test_trained_model, BOTH},
    {"samples do not depend on the split", test_samples_do_not_depend_on_the_split, BOTH},
    {"sampling frequencies", test_sampling_frequencies, BOTH},
    {"model directory, written and read", test_model_directory, BOTH},
    {"palette from .npy", test_npy_palette, BOTH},
    {"palette from .npy: refusals", test_npy_refused, FLOAT_ONLY},
    {"Hugging Face's names and shapes", test_hugging_face_names, FLOAT_ONLY},
    {"a model from transformers", test_hugging_face_model, BOTH},
    {"F16 weights", test_half_weights, FLOAT_ONLY},
    {"foreign weights are refused by name", test_foreign_weights, FLOAT_ONLY},
    {"PyTorch's numbers: features of every layer", test_pytorch_features, BOTH},
    {"features: ranges, scales, pooling, threads", test_features_agree, BOTH},
    {"L-BFGS finds known optima", test_lbfgs, BOTH},
    {"logistic regression against plain descent", test_logistic_optimum, BOTH},
    {"probe of separable and of random labels", test_probe, BOTH},
    {"validation split and low-data draws", test_label_splits, FLOAT_ONLY},
    {".npy", test_npy, FLOAT_ONLY},
    {"PNG", test_png, FLOAT_ONLY},
    {"pictures for the terminal", test_terminal, FLOAT_ONLY},
    {"SVG chart", test_chart, FLOAT_ONLY},
    {"training learns on data/emoji", test_training_learns, FLOAT_ONLY},
    {"command line: mistakes and help", test_command_line, FLOAT_ONLY},
    {"command line: train, resume, eval, sample", test_commands, FLOAT_ONLY},
    {"command line: probe", test_command_probe, FLOAT_ONLY},
    {"command line: complete", test_complete, FLOAT_ONLY},
    {"command line: BERT", test_bert_commands, FLOAT_ONLY},
    {"command line: finetune", test_finetune, FLOAT_ONLY},
    {"command line: finetune resumed", test_finetune_resumed, FLOAT_ONLY},
    {"command line: palette", test_palette_command, FLOAT_ONLY},
};

#ifndef IGPT_FUZZ

/* Arguments are test programs to run first (the other precision's); their counts are added. */
int main(int argc, char **argv) {
    int passed = 0, failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 1; i < argc; i++) {
        char line[512];
        FILE *f = popen(argv[i], "r");
        int p = 0, q = 1;
        while (f && fgets(line, sizeof line, f))
            if (sscanf(line, "%d passed, %d failed", &p, &q) != 2) fputs(line, stdout);
        if (!f || pclose(f) > 0) q += !q; // it ended badly
        passed += p;
        failed += q;
    }
    if (scratch_make()) return perror("the tests' folder"), 1;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (tests[i].where == (IS_DOUBLE ? FLOAT_ONLY : DOUBLE_ONLY)) continue;
        failures_here = 0;
        printf("%s: %s\n", IS_DOUBLE ? "double" : "float ", tests[i].name);
        tests[i].run();
        if (failures_here) failed++, printf("    FAILED\n");
        else passed++;
    }
    if (scratch_remove()) printf("cannot remove %s\n", scratch);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}

#else

/* ---- fuzzing: make fuzz ---------------------------------------------------------------------

   An input's first byte chooses which of these files the rest is; the others of its folder are
   whole. Whole is what lies at `from`, or `head` and then ones up to `size`. */

static const struct {
    const char *path, *from, *head;
    size_t n_head, size;
} inputs[] = {
    {"json/x.json", .from = "data/fixture/hf/config.json"},
    {"safetensors/x.safetensors", .from = "data/fixture/hf/expected.safetensors"},
    {"model/model.safetensors", .from = "data/fixture/hf/model.safetensors"},
    {"model/config.json", .from = "data/fixture/hf/config.json"},
    {"model/preprocessor_config.json", .from = "data/fixture/hf/preprocessor_config.json"},
    {"cifar10/data_batch_1.bin", .size = 3073},
    {"cifar10/test_batch.bin", .size = 3073},
    {"cifar10/batches.meta.txt", NULL, "a\nb\nc\nd\n", 8, 8},
    {"cifar100/train.bin", .size = 3074},
    {"cifar100/test.bin", .size = 3074},
    {"stl10/train_X.bin", .size = 27648},
    {"stl10/train_y.bin", .size = 1},
    {"stl10/test_X.bin", .size = 27648},
    {"stl10/test_y.bin", .size = 1},
    {"idx/train-images-idx3-ubyte", NULL, "\0\0\10\3\0\0\0\2\0\0\0\3\0\0\0\4", 16, 40},
    {"idx/train-labels-idx1-ubyte", NULL, "\0\0\10\1\0\0\0\2", 8, 10},
    {"idx/t10k-images-idx3-ubyte", NULL, "\0\0\10\3\0\0\0\2\0\0\0\3\0\0\0\4", 16, 40},
    {"idx/t10k-labels-idx1-ubyte", NULL, "\0\0\10\1\0\0\0\2", 8, 10},
    {"pictures/a.ppm", NULL, "P6 1 1 255\nabc", 14, 14},
    {"pictures/b.pgm", NULL, "P5 2 1 255\nab", 13, 13},
};
enum { MODELS = 2, DATA_SETS = 5, N_INPUTS = sizeof inputs / sizeof *inputs };

static struct {
    char *folder, *path;
    uint8_t *bytes;
    size_t n;
} whole[N_INPUTS];

static void insist(int condition) {
    if (!condition) abort();
}

static void remove_scratch(void) {
    insist(scratch_remove() == 0);
}

/* Make the whole files. They are the seeds, too, if the last argument is a folder for the corpus;
   of those that hold little else but ones, the beginning. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    insist(scratch_make() == 0);
    atexit(remove_scratch);
    for (int k = 0; k < N_INPUTS; k++) {
        size_t n = inputs[k].size;
        uint8_t *bytes = inputs[k].from ? read_bytes(inputs[k].from, &n) : memset(malloc(n), 1, n);
        if (inputs[k].head) memcpy(bytes, inputs[k].head, inputs[k].n_head);
        whole[k].path = strdup(scratch_path(inputs[k].path));
        whole[k].folder = strdup(whole[k].path);
        *strrchr(whole[k].folder, '/') = 0;
        whole[k].bytes = bytes;
        whole[k].n = n;
        mkdir(whole[k].folder, 0700);
        write_bytes(whole[k].path, bytes, n);
        char seed[300];
        snprintf(seed, sizeof seed, "%s/seed-%d", (*argv)[*argc - 1], k);
        FILE *f = fopen(seed, "wb");
        if (!f) continue;
        putc(k + 8 * N_INPUTS, f); // pictures of 8 x 8
        fwrite(bytes, 1, inputs[k].from || n < 64 ? n : 64, f);
        fclose(f);
    }
    return 0;
}

/* Every node is well formed, and reading it touches nothing that is not there. */
static void insist_json(const Json *json, int depth) {
    insist(depth <= 64 && (json->type == JSON_STRING) == (json->text != NULL));
    insist(!json->text || strlen(json->text) < SIZE_MAX);
    for (const Json *item = json->child; item; item = item->next) {
        insist(json->type == JSON_OBJECT ? json_get(json, item->key) == item : !item->key);
        insist_json(item, depth + 1);
    }
}

/* Read every tensor; what metadata was accepted must survive being written. */
static void insist_safetensors(Safetensors *s, size_t size) {
    const Json *metadata = json_get(s->header, "__metadata__");
    const char *pairs[65] = {0};
    int n_pairs = 0;
    for (int i = 0; i < s->n_tensor; i++) {
        const Stored *t = &s->tensors[i];
        insist(t->begin >= 8 && t->begin <= t->end && t->end <= (int64_t)size);
        size_t n = (uint64_t)t->count <= size ? (size_t)t->count : 0; // more cannot be read
        real *values = malloc(n * sizeof *values + 1);
        if (safetensors_read(s, t, values)) insist(strstr(error_text(), "dtype") != NULL);
        else insist(n == (size_t)t->count);
        free(values);
    }
    for (const Json *item = metadata ? metadata->child : NULL; item && n_pairs < 64;
         item = item->next)
        pairs[n_pairs++] = item->key, pairs[n_pairs++] = item->text;
    Safetensors copy;
    Stored t = {.name = "t", .dtype = "F16", .n_dim = 1, .shape = {2}};
    const char *path = scratch_path("copy.safetensors");
    if (!metadata) return;
    insist(!safetensors_write(path, &t, 1, pairs) && !safetensors_open(&copy, path));
    for (int i = 0; i < n_pairs; i += 2)
        insist(!strcmp(safetensors_metadata(&copy, pairs[i]), pairs[i + 1]));
    safetensors_close(&copy);
}

/* Every picture and every label is there. */
static void insist_images(const Images *set, int n_class) {
    size_t sum = 0;
    for (size_t i = 0; i < (size_t)set->n * (size_t)(set->px * set->px) * 3; i++)
        sum += set->rgb[i];
    for (int i = 0; i < set->n && set->labels; i++)
        insist(set->labels[i] >= -1 && set->labels[i] < n_class);
    insist(set->n > 0 && (set->labels != NULL) == (n_class > 0) && sum < SIZE_MAX / 2);
}

/* Read it; returns whether it was refused. */
static int fuzz_one(int kind, int n_px, const uint8_t *data, size_t size) {
    Safetensors s;
    Model m;
    Dataset set;
    Json *json = kind == 0 ? json_parse((const char *)data, size, "fuzz") : NULL;
    if (json) insist_json(json, 0);
    free(json);
    if (kind == 0) return !json;
    if (kind < MODELS) {
        if (safetensors_open(&s, whole[kind].path)) return 1;
        insist_safetensors(&s, size);
        safetensors_close(&s);
    } else if (kind < DATA_SETS) {
        if (model_load(&m, whole[kind].folder)) return insist(!m.params && !m.tensors), 1;
        insist(m.n_params * 2 <= 8192 && m.config.n_vocab == 12);
        model_free(&m);
    } else {
        if (dataset_read(&set, whole[kind].folder, n_px)) return insist(!set.train.rgb), 1;
        insist_images(&set.train, set.n_class);
        insist_images(&set.test, set.n_class);
        dataset_free(&set);
    }
    return 0;
}

/* A data set's input that is shorter than the whole file and of even length is laid over it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    int kind = *data % N_INPUTS, n_px = *data / N_INPUTS; // 0 is refused
    data++, size--;
    size_t n = kind >= DATA_SETS && size % 2 == 0 && size < whole[kind].n ? whole[kind].n : size;
    uint8_t *bytes = malloc(n + 1);
    memcpy(bytes, whole[kind].bytes, n < whole[kind].n ? n : whole[kind].n);
    memcpy(bytes, data, size);
    remove(whole[kind].path); // some file systems wait for the disk where a file is cut to nothing
    write_bytes(whole[kind].path, bytes, n);
    if (fuzz_one(kind, n_px, bytes, n)) insist(*error_text());
    remove(whole[kind].path);
    write_bytes(whole[kind].path, whole[kind].bytes, whole[kind].n);
    free(bytes);
    return 0;
}

#endif // IGPT_FUZZ

/* test_igpt.c - the tests of igpt; `make test` builds them in float and in double and runs both.
   SPDX-License-Identifier: MIT

   Mathematics is proved twice: central differences check every gradient against the code's own
   forward pass, and data/fixture holds PyTorch's numbers for a tiny model. What depends on memory
   layout, threads or files is compared to the last bit. */

#define _POSIX_C_SOURCE 200809L
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

#define CHECK(condition, ...) \
    do { \
        if (!(condition)) { \
            failures_here++; \
            printf("    %s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__); \
            printf("\n"); \
        } \
    } while (0)

static char scratch_folder[64];
static const char *scratch = scratch_folder;

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
    real *x = calloc(n, sizeof *x);
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
          random_bits(1, 2, 3) != random_bits(1, 3, 2), "seed, stream and counter are mixed up");
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
    static const int sizes[][3] = {{1, 1, 1},     {1, 7, 5},      {2, 33, 9},    {13, 31, 17},
                                   {14, 32, 64},  {15, 33, 65},   {29, 65, 300}, {32, 100, 257},
                                   {33, 100, 257}, {64, 12, 16},  {100, 48, 513}, {173, 90, 40},
                                   {7, 1100, 3},  {300, 1, 20}};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int flags = 0; flags < 8; flags++)
            check_matmul(sizes[s][0], sizes[s][1], sizes[s][2], flags & 1, flags >> 1 & 1, flags >> 2);
}

/* A row's bits must not depend on which rows are computed with it: sampling relies on it. */
static void test_matmul_rows_alike(void) {
    enum { M = 50, N = 70, K = 600 };
    real *a = filled(M * K, 1, 1), *b = filled(K * N, 2, 1);
    real *all = calloc(M * N, sizeof *all), *some = calloc(M * N, sizeof *some);
    matmul(M, N, K, a, K, 1, b, N, 1, all, N, 0);
    for (int rows = 1; rows <= 33; rows += 4) {
        matmul(rows, N, K, a, K, 1, b, N, 1, some, N, 0);
        CHECK(!memcmp(all, some, sizeof(real) * (size_t)rows * N), "%d rows differ", rows);
    }
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
    size_t stride = n > 400 ? n / 400 + 1 : 1; // all of a small tensor, every so many of a large one
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
    LayerTest t = {.x = filled(ROWS * D_, 1, 1), .gain = filled(D_, 2, 1),
                   .out = filled(ROWS * D_, 3, 0), .weights = filled(ROWS * D_, 4, 1),
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
    LayerTest t = {.x = filled((K_ + 1) * D_, 1, 1), .gain = filled(T_ * D_, 2, 1),
                   .out = filled(ROWS * D_, 3, 0), .weights = filled(ROWS * D_, 4, 1)};
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

enum { T_LONG = 150, ROWS_LONG = B_ * T_LONG }; // several bands

static double attention_loss(void *context) {
    LayerTest *t = context;
    attention_forward(t->out, t->lse, t->x, B_, T_LONG, D_, H_, t->causal, t->scratch,
                      threads_get());
    return weighted(t, ROWS_LONG * D_);
}

static LayerTest attention_setup(void) {
    return (LayerTest){.x = filled(ROWS_LONG * 3 * D_, 1, 1), .out = filled(ROWS_LONG * D_, 3, 0),
                       .weights = filled(ROWS_LONG * D_, 4, 1),
                       .lse = filled(B_ * H_ * T_LONG, 5, 0),
                       .scratch = filled((size_t)threads_get() * attention_scratch(T_LONG), 6, 1)};
}

static void attention_done(LayerTest *t) {
    free(t->x);
    free(t->out);
    free(t->weights);
    free(t->lse);
    free(t->scratch);
}

static void test_attention_gradient(void) {
    LayerTest t = attention_setup();
    real *dqkv = filled(ROWS_LONG * 3 * D_, 7, 1); // backward must overwrite this
    for (t.causal = 0; t.causal < 2; t.causal++) {
        attention_loss(&t);
        attention_backward(dqkv, t.weights, t.x, t.out, t.lse, B_, T_LONG, D_, H_, t.causal,
                           t.scratch, threads_get());
        double error = gradient_error(t.x, ROWS_LONG * 3 * D_, dqkv, attention_loss, &t);
        CHECK(error < 1e-7, "%s: %g", t.causal ? "causal" : "full", error);
    }
    free(dqkv);
    attention_done(&t);
}

/* Against softmax(Q K' / sqrt(hs)) V written out, row by row. */
static void test_attention_plain(void) {
    LayerTest t = attention_setup();
    int hs = D_ / H_;
    for (t.causal = 0; t.causal < 2; t.causal++) {
        attention_loss(&t);
        double worst = 0, worst_lse = 0;
        for (int task = 0; task < B_ * H_ * T_LONG; task++) {
            int b = task / (H_ * T_LONG), h = task / T_LONG % H_, i = task % T_LONG;
            int n = t.causal ? i + 1 : T_LONG;
            const real *q = t.x + ((size_t)b * T_LONG + (size_t)i) * 3 * D_ + h * hs;
            double p[T_LONG], sum = 0, out[D_] = {0};
            for (int j = 0; j < n; j++) {
                const real *k = t.x + ((size_t)b * T_LONG + (size_t)j) * 3 * D_ + D_ + h * hs;
                p[j] = 0;
                for (int c = 0; c < hs; c++) p[j] += (double)q[c] * (double)k[c];
                sum += p[j] = exp(p[j] / sqrt(hs));
            }
            for (int j = 0; j < n; j++) {
                const real *v = t.x + ((size_t)b * T_LONG + (size_t)j) * 3 * D_ + 2 * D_ + h * hs;
                for (int c = 0; c < hs; c++) out[c] += p[j] / sum * (double)v[c];
            }
            for (int c = 0; c < hs; c++)
                worst = fmax(worst, fabs(out[c] - (double)t.out[((size_t)b * T_LONG + (size_t)i) * D_ +
                                                                (size_t)(h * hs + c)]));
            worst_lse = fmax(worst_lse, fabs(log(sum) - (double)t.lse[task]));
        }
        CHECK(worst < (IS_DOUBLE ? 1e-13 : 2e-6), "causal %d: out off by %g", t.causal, worst);
        CHECK(worst_lse < (IS_DOUBLE ? 1e-13 : 2e-6), "causal %d: lse by %g", t.causal, worst_lse);
    }
    attention_done(&t);
}

static double gelu_loss(void *context) {
    LayerTest *t = context;
    gelu_forward(t->out, t->x, ROWS, D_);
    return weighted(t, ROWS * D_);
}

static void test_gelu_gradient(void) {
    LayerTest t = {.x = filled(ROWS * D_, 1, 3), .out = filled(ROWS * D_, 3, 0),
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
    LayerTest t = {.x = filled(ROWS * K_, 1, 2), .gain = filled(ROWS, 2, 0),
                   .out = filled(ROWS * K_, 3, 0), .weights = filled(ROWS, 4, 1)};
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

static const Config small = {.n_px = 5, .n_vocab = 9, .n_embd = 12, .n_head = 3, .n_layer = 3,
                             .n_class = 4};

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

/* Every tensor of a whole model, for every objective: AR and BERT, alone and with the class head. */
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
    random_batch(tokens, mask, labels, &small, B);
    CHECK(!model_init(&m, small), "%s", error_text());
    fill(m.params, m.n_params, 9, 0.3);
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
    random_batch(tokens, mask, labels, &small, B);
    CHECK(!model_init(&m, small), "%s", error_text());
    fill(m.params, m.n_params, 9, 0.3);
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

/* A tensor of the fixture, for the caller to free. */
static real *fixture_tensor(Fixture *f, const char *prefix, const char *name) {
    char full[128];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const Stored *s = safetensors_find(&f->file, full);
    real *x = s ? calloc((size_t)s->count, sizeof *x) : NULL;
    CHECK(x && !safetensors_read(&f->file, s, x), "%s: %s", full, error_text());
    return x;
}

static void fixture_open(Fixture *f, int objective_kind) {
    Config c = {.n_px = 4, .n_vocab = 12, .n_embd = 16, .n_head = 2, .n_layer = 2, .n_class = 5,
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
    real *tokens = fixture_tensor(f, "input.", "tokens"), *mask = fixture_tensor(f, "input.", "mask");
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
    CHECK(fabs(learning_rate(0, 100, 10, 1) - 0.1) < 1e-12, "starts at %g", learning_rate(0, 100, 10, 1));
    CHECK(learning_rate(9, 100, 10, 1) == 1, "peak is %g", learning_rate(9, 100, 10, 1));
    CHECK(fabs(learning_rate(55, 100, 10, 1) - 0.5) < 1e-12, "half way %g", learning_rate(55, 100, 10, 1));
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
        Config c = {.n_px = 32, .n_vocab = 512, .n_embd = sizes[i].d, .n_head = sizes[i].H,
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
        double squares = 0, wanted = strstr(t->name, "ln_") ? 1
                              : strstr(t->name, "wpe") ? 0.01
                              : strstr(t->name, "c_attn") ? 1.0 / 8
                              : strstr(t->name, "attn.c_proj") ? 1.0 / 16
                              : strstr(t->name, "lm_head") || strstr(t->name, "score") ? 0 : 0.02;
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
        Config c = {.n_px = 12, .n_vocab = 9, .n_embd = 48, .n_head = 3, .n_layer = 2, .n_class = 4,
                    .objective = kind};
        size_t n;
        real *one = trained_params(&c, 1, 4, &n);
        for (int threads = 2; threads <= 5; threads += threads == 3 ? 2 : 1) {
            real *several = trained_params(&c, threads, 4, &n);
            CHECK(!memcmp(one, several, n * sizeof(real)), "%d threads differ, objective %d", threads,
                  kind);
            free(several);
        }
        free(one);
    }
    threads_set(0);
}

/* ---- 7 palette ------------------------------------------------------------------------------ */

static double inertia_of(const uint8_t *rgb, size_t n, const real *palette, const uint16_t *tokens) {
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
        CHECK(palette_build(palette, K, rgb, N, seed, &inertia) == K, "%s", error_text());
        CHECK(!palette_index(tokens, rgb, N, palette, K), "%s", error_text());
        CHECK(fabs(inertia_of(rgb, N, palette, tokens) - inertia) < 1e-3 * inertia,
              "inertia %g, but the palette gives %g", inertia, inertia_of(rgb, N, palette, tokens));
        CHECK(inertia > optimum * 0.9999, "seed %d: %g beats the optimum %g", (int)seed, inertia, optimum);
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
    CHECK(palette_build(palette, 8, rgb, 5, 1, &inertia) == 3, "three colours are there");
    CHECK(inertia == 0, "inertia %g", inertia);
    CHECK(palette_build(palette, 8, rgb, 0, 1, NULL) == -1, "no pixels, but a palette");
    uint8_t back[15];
    uint16_t tokens[5];
    palette_build(palette, 8, rgb, 5, 1, NULL);
    CHECK(!palette_index(tokens, rgb, 5, palette, 3), "%s", error_text());
    palette_colours(back, tokens, 5, palette);
    CHECK(!memcmp(back, rgb, 15), "colours do not come back");
}

/* A pixel as far from two colours goes to the first; and always to the nearest, by brute force. */
static void test_quantisation(void) {
    const real ties[] = {-1, -1, -1, (real)(100 / 127.5 - 1), -1, -1, (real)(50 / 127.5 - 1), -1, -1,
                         (real)(100 / 127.5 - 1), -1, -1};
    static const uint8_t rgb[] = {50, 0, 0, 100, 0, 0, 25, 0, 0, 0, 0, 0};
    uint16_t tokens[2000];
    CHECK(!palette_index(tokens, rgb, 4, ties, 4), "%s", error_text());
    CHECK(tokens[0] == 2 && tokens[1] == 1 && tokens[3] == 0, "%d %d %d", tokens[0], tokens[1], tokens[3]);
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
                worst = fmax(worst, fabs((double)logits[b * K + k] - (double)all[(b * T + t) * K + k]));
            previous[b] = tokens[b * T + t];
        }
    }
    CHECK(worst < (IS_DOUBLE ? 1e-12 : 1e-4), "off by %g", worst);
    free(sampler);
    free(acts);
    model_free(&m);
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
    double p[K], sum = 0, apart = 0;
    for (int k = 0; k < K; k++) sum += p[k] = exp((double)logits[k] / 1.5);
    sample_images(&m, sampler, tokens, N, 0, 1, 0, 1.5, 0);
    for (int k = 0; k < K; k++) {
        int count = 0;
        for (int i = 0; i < N; i++) count += tokens[i] == k;
        apart = fmax(apart, fabs((double)count / N - p[k] / sum));
    }
    CHECK(apart < 0.03, "a frequency is off by %g", apart);
    free(sampler);
    free(tokens);
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
    CHECK(m.n_params == back.n_params &&
          !memcmp(m.params, back.params, m.n_params * sizeof(real)), "the weights differ");
    for (int i = 0; i < 3 * small.n_vocab; i++)
        CHECK(fabs((double)m.palette[i] - (double)back.palette[i]) < 1e-7, "palette[%d] differs", i);
    CHECK(!strcmp(back.class_names[2], "People \"&\" Body"), "class 2 is %s", back.class_names[2]);
    model_free(&back);

    /* Whatever is cut off a file, loading fails and names the file. */
    static const char *const names[] = {"model.safetensors", "config.json", "preprocessor_config.json"};
    for (int i = 0; i < 3; i++) {
        char path[300];
        size_t n;
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        uint8_t *bytes = read_bytes(path, &n);
        for (size_t kept = 0; kept < n; kept += n / 7 + 1) {
            write_bytes(path, bytes, kept);
            CHECK(model_load(&back, dir) && strstr(error_text(), names[i]), "%s cut to %zu bytes: %s",
                  names[i], kept, error_text());
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
    } expected[] = {{"transformer.wte.weight", 10, 12}, {"transformer.wpe.weight", 25, 12},
                    {"transformer.h.2.ln_1.weight", 0, 12},
                    {"transformer.h.2.attn.c_attn.weight", 12, 36},
                    {"transformer.h.2.attn.c_attn.bias", 0, 36},
                    {"transformer.h.2.attn.c_proj.bias", 0, 12},
                    {"transformer.h.0.mlp.c_fc.weight", 12, 48},
                    {"transformer.h.0.mlp.c_fc.bias", 0, 48},
                    {"transformer.h.1.mlp.c_proj.weight", 48, 12},
                    {"transformer.h.1.mlp.c_proj.bias", 0, 12},
                    {"transformer.ln_f.weight", 0, 12}, {"lm_head.weight", 9, 12},
                    {"score.weight", 4, 12}};
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        const Stored *s = safetensors_find(&file, expected[i].name);
        CHECK(s && s->shape[0] == (expected[i].rows ? expected[i].rows : expected[i].cols) &&
              s->n_dim == (expected[i].rows ? 2 : 1), "%s", expected[i].name);
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

/* A bias that is not zero, a tensor of another shape and one that is missing are refused by name. */
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
    for (int what = 0; what < 3; what++) {
        Stored *list = calloc((size_t)n, sizeof *list);
        int count = 0;
        const char *expected = what == 0 ? "h.1.attn.c_attn.bias" : "h.2.ln_2.weight";
        for (int i = 0; i < n; i++) {
            list[count] = changed[i];
            if (strstr(names[i], expected)) {
                if (what == 0) list[count].data = one;
                if (what == 1) list[count].shape[0] = 11;
                if (what == 2) continue;
            }
            count++;
        }
        CHECK(!safetensors_write(path, list, count, NULL), "%s", error_text());
        CHECK(model_load(&back, dir) && strstr(error_text(), expected), "%d: %s", what, error_text());
        free(list);
    }
    free(changed);
    free(names);
    model_free(&m);
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
        CHECK(be32(data + size) == plain_crc(type, size + 4), "%.4s: wrong CRC", (const char *)type);
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
        CHECK(raw[y * (3 * W + 1)] == 0 && !memcmp(raw + y * (3 * W + 1) + 1, rgb + y * 3 * W, 3 * W),
              "row %d differs", y);
    CHECK(png_write(scratch_path("no/such/folder.png"), rgb, W, H) == -1 &&
          strstr(error_text(), "folder.png"), "%s", error_text());
    free(png);
    free(raw);
    free(rgb);
}

static void test_chart(void) {
    const double x[] = {0, 1, 2}, y[] = {1, NAN, 3};
    const Series series[] = {{"a & b < c", "#123456", 3, x, y, 1}};
    size_t n;
    CHECK(!chart_write(scratch_path("chart.svg"), "title", "x", "y", series, 1), "%s", error_text());
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
    CHECK(data.train.n == 2195 && data.test.n == 393 && data.n_class == 9, "data/emoji has changed");
    CHECK(!model_init(&m, c), "%s", error_text());
    model_randomise(&m, 1);
    CHECK(palette_build(m.palette, 16, data.train.rgb, (size_t)data.train.n * T, 1, NULL) == 16, "%s",
          error_text());
    CHECK(!images_quantise(&data.train, m.palette, 16) && !images_quantise(&data.test, m.palette, 16),
          "%s", error_text());
    Activations *acts = activations_new(&c, N_TEST, KEEP_ALL);
    size_t n = m.n_params;
    real *grads = filled(n, 1, 0), *first = filled(n, 1, 0), *second = filled(n, 1, 0);
    Batch test = {N_TEST, data.test.tokens, NULL, NULL};
    double before = objective(&m, acts, &test, 1, 0, 0, NULL).gen / N_TEST, count[16] = {0}, unigram = 0;
    CHECK(fabs(before - log(16)) < 1e-3, "starts at %g, not ln 16", before);
    for (int step = 0; step < STEPS; step++) {
        Batch batch = {B, data.train.tokens + step * B * T, NULL, NULL};
        objective(&m, acts, &batch, 1, 0, 1.0 / B, grads);
        adam_step(m.params, grads, first, second, n, step + 1, learning_rate(step, STEPS, 20, 0.01));
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
    CHECK(run_igpt("train --help") == 0 && strstr(output, "--steps") && strstr(output, "--lr"), "%s",
          output);
    expect(2, "train", "trian");
    expect(2, "--steps", "train --step 5");
    expect(2, "needs a value", "train --steps");
    expect(2, "number", "train --steps many");
    expect(2, "whole number", "train --steps 1.5");
    expect(2, "--threads", "train --threads -1");
    expect(2, "no option", "train surplus");
    expect(1, "n_head", "train --n-embd 30 --n-head 4");
    expect(1, "preset", "train --preset huge");
    expect(1, "no/such", "train --data no/such");
    expect(1, "no/such", "eval --model no/such");
    expect(1, "no/such", "sample --model no/such");
    snprintf(line, sizeof line, "train --steps 1 --out %s/file", scratch);
    write_bytes(scratch_path("file"), "", 0);
    expect(1, "/file", line);
    CHECK(run_igpt("info --preset igpt-l") == 0 && strstr(output, "parameters_millions 1362\n"), "%s",
          output);
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

/* Train, evaluate and sample by the program itself. A run that is stopped by Ctrl-C and resumed ends
   with the same bytes as one that was never stopped, and so does one on another number of threads. */
static void test_commands(void) {
    char sizes[400], line[1200];
    snprintf(sizes, sizeof sizes, "--n-layer 1 --n-embd 32 --n-head 2 --n-px 8 --n-vocab 12 --batch 4 "
             "--micro-batch 3 --steps 600 --eval-every 300 --save-every 20 --quiet --out %s", scratch);
    CHECK(run_igpt("train %s/whole", sizes) == 0 && strstr(output, "\nunigram_nats "), "%s", output);
    CHECK(run_igpt("train %s/threads --threads 3", sizes) == 0, "%s", output);
    snprintf(line, sizeof line,
             "./igpt train %s/parts 2>%s/said & pid=$!; n=0; "
             "until [ -e %s/parts/train_state.safetensors ] || [ $n -gt 2000 ]; "
             "do n=$((n+1)); sleep 0.01; done; kill -INT $pid; wait $pid", sizes, scratch, scratch);
    int status = system(line);
    size_t n;
    char *said = (char *)read_bytes(scratch_path("said"), &n);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 1, "Ctrl-C: status %x", (unsigned)status);
    CHECK(said && strstr(said, "stopped at step ") && strstr(said, "--resume"), "%s", said);
    free(said);
    CHECK(run_igpt("train --resume --quiet --out %s/parts", scratch) == 0, "%s", output);
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
    {"published parameter counts", test_parameter_counts, BOTH},
    {"initial values", test_initial_values, BOTH},
    {"same bits for 1, 2, 3 and 5 threads", test_same_bits_for_all_threads, BOTH},
    {"k-means against brute force", test_kmeans_brute_force, BOTH},
    {"palette of few colours", test_palette_few_colours, BOTH},
    {"quantisation and its ties", test_quantisation, BOTH},
    {"cached sampling gives forward's logits", test_cache_is_forward, BOTH},
    {"samples do not depend on the split", test_samples_do_not_depend_on_the_split, BOTH},
    {"sampling frequencies", test_sampling_frequencies, BOTH},
    {"model directory, written and read", test_model_directory, BOTH},
    {"Hugging Face's names and shapes", test_hugging_face_names, FLOAT_ONLY},
    {"foreign weights are refused by name", test_foreign_weights, FLOAT_ONLY},
    {"PNG", test_png, FLOAT_ONLY},
    {"SVG chart", test_chart, FLOAT_ONLY},
    {"training learns on data/emoji", test_training_learns, FLOAT_ONLY},
    {"command line: mistakes and help", test_command_line, FLOAT_ONLY},
    {"command line: train, resume, eval, sample", test_commands, FLOAT_ONLY},
};

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
    snprintf(scratch_folder, sizeof scratch_folder, "/tmp/igpt-test-XXXXXX");
    if (!mkdtemp(scratch_folder)) return perror("mkdtemp"), 1;
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (tests[i].where == (IS_DOUBLE ? FLOAT_ONLY : DOUBLE_ONLY)) continue;
        failures_here = 0;
        printf("%s: %s\n", IS_DOUBLE ? "double" : "float ", tests[i].name);
        tests[i].run();
        if (failures_here) failed++, printf("    FAILED\n");
        else passed++;
    }
    char clean[128];
    snprintf(clean, sizeof clean, "rm -rf %s", scratch_folder);
    if (system(clean)) printf("cannot remove %s\n", scratch_folder);
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}

/* fuzz.c - strange files for every reader of igpt: a libFuzzer target, make fuzz.
   SPDX-License-Identifier: MIT

   An input's first byte chooses which of the files below the rest is; the others of its folder are
   whole. It is run from where data/ lies. igpt.c is a part of this program, so that what only its
   main() reaches can be called, too: the words of a command line, and a run's state, whose rows
   must then make a log and a chart. data/fuzz keeps inputs that each once took another way through
   a reader; make test runs all of them again, with any compiler:

       cc -g -DFUZZ_REPLAY data/fuzz.c -lm -o fuzz_replay && ./fuzz_replay data/fuzz/?*    */

#define _DEFAULT_SOURCE 1 // with -std=c11, too, the C library shows what POSIX has, and P_tmpdir
#include <setjmp.h>
#include <stdlib.h>

/* igpt.c ends a command by exit(). Here it goes back to the input's end, where memory is given back
   that the command would have kept. */
static jmp_buf input_end;
static void *taken[1024]; // since the input began
static int n_taken = -1;  // -1: it has not

static int take_memory(void **p, size_t to, size_t bytes) {
    int error = posix_memalign(p, to, bytes);
    if (!error && n_taken >= 0 && n_taken < 1024) taken[n_taken++] = *p;
    return error;
}

static void give_memory(void *p) {
    for (int i = 0; i < n_taken; i++)
        if (taken[i] == p) taken[i] = taken[--n_taken];
    free(p);
}

#define posix_memalign take_memory
#define free give_memory
#define exit(status) longjmp(input_end, 1)
#define main igpt_main
#include "../igpt.c"
#undef posix_memalign
#undef free
#undef exit
#undef main

/* Whole is what lies at `from`, or `head` and then ones up to `size`. */
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
    {"words/x", NULL, "\0--steps\n5\n--lr\n1e-3\n", 21, 21},
    {"state/train_state.safetensors", .size = 0}, // both are made below
    {"tuned/train_state.safetensors", .size = 0},
};
enum { MODEL = 2, COLOURS = 4, DATA_SETS, WORDS = 20, STATES };
enum { N_INPUTS = sizeof inputs / sizeof *inputs, KINDS = 32 }; // room for more of them

static struct {
    char *folder, *path;
    uint8_t *bytes;
    size_t n;
} whole[N_INPUTS];

enum { MOST = 8192 }; // bytes of an input (-max_len)

static void insist(int condition) {
    if (!condition) abort();
}

/* ---- files ---------------------------------------------------------------------------------- */

static char scratch[128]; // a fresh folder where the system keeps such

static void scratch_remove(void) {
    char line[160];
    snprintf(line, sizeof line, "rm -rf '%s'", scratch);
    insist(system(line) == 0);
}

static char *scratch_path(const char *name) { // for the caller to free
    size_t room = strlen(scratch) + strlen(name) + 2;
    char *path = malloc(room);
    snprintf(path, room, "%s/%s", scratch, name);
    return path;
}

static void write_bytes(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    insist(f != NULL);
    insist(fwrite(bytes, 1, n, f) == n && fclose(f) == 0);
}

/* The whole file, for the caller to free. */
static uint8_t *read_bytes(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) perror(path), exit(1);
    fseek(f, 0, SEEK_END);
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *bytes = malloc(*n + 1);
    insist(fread(bytes, 1, *n, f) == *n && fclose(f) == 0);
    return bytes;
}

/* A run as run_open() leaves one, of a model as small as can be. */
static Run run_new(Options *o, int fine) {
    static Model m;
    Run r = {.o = o, .fine = fine, .n_rows = 1, .best.held.accuracy = -1, .words = ""};
    if (!m.params) insist(!model_init(&m, (Config){1, 2, 1, 1, 1, 2, OBJECTIVE_AR}));
    r.model = r.result = m;
    r.log = need_memory(4, sizeof *r.log);
    real *memory = need_memory(4 * m.n_params, sizeof *memory);
    r.adam = (Adam){m.n_params, m.params, memory, memory + m.n_params, memory + 2 * m.n_params};
    return r;
}

/* The state of such a run after two steps. */
static void state_make(const char *path, int fine) {
    Stored list[N_STATE];
    Run r = run_new(NULL, fine);
    char config[1024];
    config_fields(config, &r.model.config);
    const char *metadata[] = {"command", fine ? "finetune" : "train",
                              "words",   "--steps\n4\n",
                              "config",  config,
                              "classes", "0\n1\n",
                              NULL};
    for (r.n_rows = 1; r.n_rows < 3; r.n_rows++)
        r.log[r.n_rows] = (Row){(double)r.n_rows, 0.5, 1e-3, {2, 1, NAN}, {1.5, NAN, 0.25}};
    r.log[r.n_rows].step = 2;
    state_list(&r, list);
    insist(!safetensors_write(path, list, N_STATE, metadata));
    free(r.log);
    free(r.adam.grads);
}

/* Make the whole files. They are the seeds, too, if the last argument is a folder for the corpus;
   of those that hold little else but ones, the beginning. */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *base = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/igpt-XXXXXX", base && *base ? base : P_tmpdir);
    insist(mkdtemp(scratch) != NULL);
    atexit(scratch_remove);
    console.quiet = 1;
    for (int k = 0; k < N_INPUTS; k++) {
        size_t n = inputs[k].size;
        whole[k].path = scratch_path(inputs[k].path);
        whole[k].folder = strdup(whole[k].path);
        *strrchr(whole[k].folder, '/') = 0;
        mkdir(whole[k].folder, 0700);
        if (k >= STATES) state_make(whole[k].path, k - STATES);
        const char *from = k >= STATES ? whole[k].path : inputs[k].from;
        uint8_t *bytes = from ? read_bytes(from, &n) : memset(malloc(n), 1, n);
        if (inputs[k].head) memcpy(bytes, inputs[k].head, inputs[k].n_head);
        whole[k].bytes = bytes;
        whole[k].n = n;
        write_bytes(whole[k].path, bytes, n);
        char seed[300];
        snprintf(seed, sizeof seed, "%s/seed-%d", (*argv)[*argc - 1], k);
        FILE *f = fopen(seed, "wb");
        if (!f) continue;
        putc(k + 4 * KINDS, f); // pictures of 4 x 4
        fwrite(bytes, 1, from || n < 64 ? n : 64, f);
        fclose(f);
    }
    return 0;
}

/* ---- what must hold of a file that was read -------------------------------------------------- */

/* A string needs its length and one byte more. Returns it, for the caller to free. */
static char *string_of(const char *value) {
    char all[MOST + 1];
    insist(!json_text(value, all, sizeof all));
    size_t n = strlen(all);
    char *text = malloc(n + 1);
    insist(!json_text(value, text, (Size)n + 1) && !strcmp(text, all));
    insist(json_text(value, all, (Size)n) == -1);
    return text;
}

/* Every value reachable lies between `value` and `end`, is of one kind, and reading it touches
   nothing that is not there. */
static void insist_json(const char *value, const char *end, int depth) {
    int object = *value == '{', array = *value == '[', string = *value == '"';
    int number = *value == '-' || (*value >= '0' && *value <= '9');
    int word = *value == 't' || *value == 'f' || *value == 'n'; // true, false, null
    insist(depth <= 64 && value < end && (object || array || string || number || word));
    insist(number ? isfinite(json_number(value)) : word || isnan(json_number(value)));
    if (string) free(string_of(value));
    else insist(json_text(value, (char[8]){0}, 8) == -1);
    if (!object) insist(!json_get(value, "a"));
    if (!object && !array) return;
    const char *before = value;
    for (const char *item = json_first(value); item; item = json_next(item)) {
        insist(item > before && item < end);
        before = item;
        if (array) insist_json(item, end, depth + 1);
        if (array) continue;
        const char *behind = json_value(item);
        char *key = string_of(item);
        insist(behind > item && behind < end && json_get(value, key) >= behind); // the last counts
        free(key);
        insist_json(behind, end, depth + 1);
    }
}

/* The elements lie in the file and can be read if their type is known. Returns the bytes. */
static Size insist_tensor(const Safetensors *s, const Stored *t) {
    static const Size bytes_of[] = {[F64] = 8, [F32] = 4, [F16] = 2, [BF16] = 2, [I64] = 8};
    int known = t->dtype < OTHER;
    Size bytes = t->end - t->begin, count = 1;
    insist(t->begin >= s->start && bytes >= 0 && t->end <= s->size);
    insist(t->dtype >= 0 && t->n_dim >= 0 && t->n_dim <= 8 && t->count >= 0);
    for (int i = 0; i < t->n_dim && t->count; i++) count *= t->shape[i];
    insist(!t->count || count == t->count);
    insist(!known || t->count * bytes_of[t->dtype] == bytes);
    size_t n = known ? (size_t)t->count : 0;
    real *values = malloc(n * sizeof *values + 1);
    double *wide = malloc(n * sizeof *wide + 1);
    insist(safetensors_read(s, t, values, NULL) == (known ? 0 : -1));
    insist(safetensors_read(s, t, NULL, wide) == (known ? 0 : -1));
    free(values);
    free(wide);
    return bytes;
}

/* What metadata was accepted must survive being written. */
static void insist_metadata(const Safetensors *s) {
    const char *metadata = json_get(s->header, "__metadata__"), *pairs[65] = {0};
    char *path = scratch_path("copy.safetensors"), text[MOST + 1];
    int n = 0;
    insist(*metadata == '{');
    for (const char *key = json_first(metadata); key && n < 64; key = json_next(key)) {
        if (json_get(metadata, pairs[n] = string_of(key)) != json_value(key)) {
            free((char *)pairs[n]); // the same key comes again
            pairs[n] = NULL;
            continue;
        }
        pairs[n + 1] = string_of(json_value(key));
        n += 2;
    }
    Stored t = {.name = "t", .dtype = F16, .n_dim = 1, .shape = {2}};
    Safetensors copy;
    insist(!safetensors_write(path, &t, 1, pairs) && !safetensors_open(&copy, path));
    for (int i = 0; i < n; i++) {
        if (i % 2 == 0) insist(!safetensors_metadata(&copy, pairs[i], text, sizeof text));
        else insist(!strcmp(text, pairs[i]));
    }
    for (int i = 0; i < n; i++) free((char *)pairs[i]);
    safetensors_close(&copy);
    free(path);
}

/* The tensors of the header can be found and lie in the file. */
static void insist_safetensors(const Safetensors *s, size_t size) {
    Size sum = 0;
    Stored t;
    insist(s->size == (Size)size && s->start >= 8 && s->start <= s->size);
    for (const char *key = json_first(s->header); key; key = json_next(key)) {
        char *name = string_of(key);
        int metadata = !strcmp(name, "__metadata__");
        insist(json_get(s->header, name) != NULL); // of a name twice the last one counts
        insist(safetensors_find(s, name, &t) == !metadata);
        if (!metadata) sum += insist_tensor(s, &t);
        free(name);
    }
    insist(sum >= 0);
    if (json_get(s->header, "__metadata__")) insist_metadata(s);
}

/* Every picture, every label and every name is there. */
static void insist_images(const Images *set, const Dataset *data, Size n_px) {
    Size sum = 0;
    insist(set->n > 0 && set->px == n_px && !set->tokens);
    for (Size i = 0; i < set->n * n_px * n_px * 3; i++) sum += set->rgb[i];
    for (Size i = 0; i < set->n; i++)
        insist(set->labels[i] == NO_LABEL || set->labels[i] < data->n_class);
    for (Size k = 0; k < data->n_class; k++) sum += (Size)strlen(data->class_names[k]);
    insist(sum >= 0);
}

static void insist_palette(const real *palette, Size K) {
    insist(K > 0);
    for (Size i = 0; i < 3 * K; i++) insist(fabs((double)palette[i]) < 1.01); // 1, but for rounding
}

/* The words of a command line, one to a line; the first byte tells the command. What is accepted
   lies within the table's ranges, and is read again from what a run keeps. */
static int words_refused(char *text) {
    static Options o;
    char *words[MOST];
    int n = 0;
    const Command *command = &commands[(uint8_t)*text % N_COMMANDS];
    for (char *p = text + !!*text, *rest; (p = strtok_r(p, "\n", &rest)); p = NULL) words[n++] = p;
    if (options_all(&o, command, words, n, "")) return 1;
    for (const Option *option = option_table; option < option_table + N_OPTIONS; option++) {
        int whole_number = *option->value == 'N', at = (int)(option - option_table);
        if (!(option->commands & command->bit) || !o.source[at] || option->high == 0) continue;
        const void *field = (char *)&o + option->where;
        double value = whole_number ? (double)*(const Size *)field : *(const double *)field;
        insist(value >= option->low && value <= option->high);
    }
    char *saved = words_keep("", &o);
    insist(!options_all(&o, command, NULL, 0, saved));
    return 0;
}

/* A run's state, as --resume reads it: what comes of it must make a log, a chart and a state. */
static int state_refused(const char *folder, int fine, Safetensors *state) {
    static Options o;
    Stored list[N_STATE];
    char *words[] = {(char *)"--out", (char *)folder};
    *state = (Safetensors){.file = NULL};
    if (setjmp(input_end)) return safetensors_close(state), 1;
    insist(!options_all(&o, &commands[fine], words, 2, ""));
    insist(commands[fine].bit == (fine ? FINETUNE : TRAIN));
    run_reopen(&o, state);
    Model promised;
    state_model(&promised, state);
    insist(!config_check(&promised.config));
    Run r = run_new(&o, fine); // a state that is of another model does not fit
    r.state = *state;
    state_load(&r);
    safetensors_close(state);
    insist(r.n_rows >= 1 && r.log[r.n_rows].step <= INT_MAX / 2);
    char *path = scratch_path("state/written");
    log_write(&r, path);
    size_t n, lines = 0, commas = 0;
    uint8_t *log = read_bytes(path, &n);
    for (size_t i = 0; i < n; i++) lines += log[i] == '\n', commas += log[i] == ',';
    insist(lines == (size_t)r.n_rows && commas == lines * (fine ? 7 : 4));
    if (r.n_rows > 1) loss_chart(&r, path);
    state_list(&r, list);
    insist(!safetensors_write(path, list, N_STATE, NULL));
    free(path);
    free(log);
    return 0;
}

/* ---- one input ------------------------------------------------------------------------------- */

/* Read it; returns whether it was refused. bytes[size] is 0. */
static int fuzz_one(int kind, Size n_px, uint8_t *bytes, size_t size) {
    const char *text = (const char *)bytes, *path = whole[kind].path, *folder = whole[kind].folder;
    if (kind == 0) {
        if (json_check(text, (Size)size, "fuzz")) return 1;
        insist_json(text + strspn(text, " \t\r\n"), text + size, 0);
    } else if (kind < MODEL) {
        Safetensors s;
        if (safetensors_open(&s, path)) return 1;
        insist_safetensors(&s, size);
        safetensors_close(&s);
    } else if (kind < DATA_SETS) {
        Size K = 0;
        real *palette = kind == COLOURS ? palette_read(path, &K) : NULL;
        if (palette) insist_palette(palette, K);
        free(palette);
        Model m = {.n_params = 0};
        if (model_load(&m, folder)) return insist(!m.params && !m.tensors), 1;
        insist(m.n_params * 2 <= MOST && m.config.n_vocab == 12);
        insist_palette(m.palette, m.config.n_vocab);
        model_free(&m);
    } else if (kind == WORDS) {
        return words_refused((char *)bytes);
    } else if (kind >= STATES) {
        static Safetensors state;
        return state_refused(folder, kind > STATES, &state);
    } else {
        Dataset set;
        if (dataset_read(&set, folder, n_px)) return insist(!set.train.rgb && !set.test.rgb), 1;
        insist_images(&set.train, &set, n_px);
        insist_images(&set.test, &set, n_px);
        dataset_free(&set);
    }
    return 0;
}

static int n_refused;

/* A data set's input that is shorter than the whole file and of even length is laid over it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size || size > MOST || *data % KINDS >= N_INPUTS) return -1; // of no use in a corpus
    int kind = *data % KINDS, n_px = *data / KINDS;                   // 0 is refused
    data++, size--;
    size_t n = kind >= DATA_SETS && kind < WORDS && size % 2 == 0 && size < whole[kind].n
                   ? whole[kind].n
                   : size;
    uint8_t *bytes = malloc(n + 1);
    memcpy(bytes, whole[kind].bytes, n < whole[kind].n ? n : whole[kind].n);
    memcpy(bytes, data, size);
    bytes[n] = 0;
    remove(whole[kind].path); // some file systems wait for the disk where a file is cut to nothing
    write_bytes(whole[kind].path, bytes, n);
    n_taken = kind < WORDS ? -1 : 0; // readers give back all that they take
    int refused = fuzz_one(kind, n_px, bytes, n);
    while (n_taken > 0) free(taken[--n_taken]);
    n_taken = -1;
    if (refused) insist(*error_text());
    n_refused += refused;
    remove(whole[kind].path);
    write_bytes(whole[kind].path, whole[kind].bytes, whole[kind].n);
    free(bytes);
    return 0;
}

#ifdef FUZZ_REPLAY
int main(int argc, char **argv) {
    char *no_corpus[] = {scratch, NULL};
    LLVMFuzzerInitialize(&(int){1}, &(char **){no_corpus});
    for (int i = 1; i < argc; i++) {
        size_t n;
        uint8_t *bytes = read_bytes(argv[i], &n);
        fprintf(stderr, "%s\n", argv[i]); // the last one is the one that crashed
        LLVMFuzzerTestOneInput(bytes, n);
        free(bytes);
    }
    printf("%d inputs: %d read, %d refused\n", argc - 1, argc - 1 - n_refused, n_refused);
    return 0;
}
#endif

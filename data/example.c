/* example.c - another program that uses igpt: completes the lower half of a picture with each model.
   SPDX-License-Identifier: MIT
   cc -O3 -march=native -fopenmp -DIGPT_NO_MAIN -I. data/example.c igpt.c -lm -o example
   Or igpt.c as a part of this file, without a single global symbol of its own:
   cc -O3 -march=native -fopenmp -DIGPT_NO_MAIN -DIGPT_API=static -DIGPT_INCLUDE -I. data/example.c -lm
   ./example [MODEL PICTURE.png] ... */
#ifdef IGPT_INCLUDE
#    include "igpt.c"
#else
#    include "igpt.h"
#    include <stdlib.h>
#endif

static int complete(const char *dir, const char *path) {
    Model model;
    Dataset data;
    if (model_load(&model, dir) || dataset_read(&data, "data/emoji", model.config.n_px)) return -1;
    Size px = model.config.n_px, T = px * px;
    Activations *acts = activations_new(&model.config, 1, KEEP_PAST);
    uint8_t *rgb = malloc((size_t)(3 * T));
    const Drawing drawing = {.seed = 1, .temperature = 0.85};
    int bad = !acts || !rgb || images_quantise(&data.test, model.palette, model.config.n_vocab);
    if (!bad) {
        uint16_t *tokens = data.test.tokens; // the first picture; its second half is drawn anew
        bad = sample_positions(&model, acts, tokens, 1, 0, T, T / 2, &drawing);
        palette_colours(rgb, tokens, T, model.palette);
        bad = bad || sheet_write(path, rgb, 1, px, 1);
    }
    free(rgb);
    free(acts);
    dataset_free(&data);
    model_free(&model);
    return bad ? -1 : 0;
}

int main(int argc, char **argv) {
    int bad = argc < 3 && complete("data/emoji-ar", "example.png");
    for (int i = 1; i + 1 < argc && !bad; i += 2) bad = complete(argv[i], argv[i + 1]);
    if (bad) fprintf(stderr, "example: %s\n", error_text());
    return bad != 0;
}

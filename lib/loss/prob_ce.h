/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cross-entropy of one class whose probability p is given: -log(clip(p)), with the clip of Keras' epsilon in float32,
 * [1e-7, 0.99999988]. Slope with respect to p: -1/p inside the clip, 0 outside, as clip_by_value has it.
 *
 * Source: the SSD loss of the Keras SSD tutorial; tf.keras.losses.categorical_crossentropy without its renormalisation.
 */
#ifndef BX_LOSS_PROB_CE_H
#define BX_LOSS_PROB_CE_H

#include "../real.h"

#define BX_PROB_LEAST 1e-7f
#define BX_PROB_MOST  0.99999988f /* 1 - 1e-7 in float32 */

BX_INLINE float bx_prob_ce(float p, float *slope) {
    float clipped = p < BX_PROB_LEAST ? BX_PROB_LEAST : p > BX_PROB_MOST ? BX_PROB_MOST : p;
    *slope = p >= BX_PROB_LEAST && p <= BX_PROB_MOST ? -1.0f / p : 0.0f;
    return -bx_log(clipped);
}

#endif

// Averages and clips gradients, and applies Adam (https://arxiv.org/abs/1412.6980) to parameters in place.
#include "kernels.h"

// Of torch's fused Adam. new_in_average and new_in_square are 1 - beta1 and 1 - beta2, computed in double precision, as
// 1 - 0.999 loses digits in single precision; the bias corrections are 1 - beta1^step and sqrt(1 - beta2^step).
struct Settings {
  float rate, new_in_average, beta2, new_in_square, decay, epsilon, correction, root_correction;
};

struct Parameter {
  float *value, *average, *average_of_square, *steps;
  const float* gradient;
  const Settings* settings;
  size count;
};

// The mean of `parts` gradients of `total` floats each.
extern "C" void average(const float* gradients, size parts, size total, float* mean) {
  enum { BLOCK = 2048 };  // cache blocking: stays in the first-level cache
  for (size i = 0; i < total; i += BLOCK) {
    size count = total - i < BLOCK ? total - i : BLOCK;
    for (size part = 0; part < parts; part++) {
      const float* from = gradients + part * total + i;
#pragma GCC ivdep
      for (size j = 0; j < count; j++) mean[i + j] = (part ? mean[i + j] : 0.f) + from[j];
    }
#pragma GCC ivdep
    for (size j = 0; j < count; j++) mean[i + j] /= (float)parts;
  }
}

// One step: clips the contiguous gradient as torch's clip_grad_norm_ and applies Adam; writes the norm before clipping.
extern "C" void step(const Parameter* parameters, size count, const float* gradient, size total, float max_norm,
                     float* norm_before) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size i = 0; i < total; i++) sum += gradient[i] * gradient[i];
  float norm = *norm_before = __builtin_sqrtf(sum), scale = max_norm / (norm + 1e-6f);
  scale = scale < 1.f ? scale : max_norm == __builtin_inff() || scale >= 1.f ? 1.f : scale;  // NaN propagates
  for (const Parameter* p = parameters; p < parameters + count; p++) {
    Settings s = *p->settings;
    *p->steps += 1;
#pragma GCC ivdep
    for (size i = 0; i < p->count; i++) {
      float g = p->gradient[i] * scale + s.decay * p->value[i];
      float average = p->average[i] + s.new_in_average * (g - p->average[i]);
      float average_of_square = s.beta2 * p->average_of_square[i] + s.new_in_square * g * g;
      p->average[i] = average;
      p->average_of_square[i] = average_of_square;
      float root = __builtin_sqrtf(average_of_square) / s.root_correction;
      p->value[i] -= s.rate / s.correction * average / (root + s.epsilon);
    }
  }
}

// `AdamWOptions` of `adamw.rs`.

#pragma once

struct AdamWOptions {
  double lr, beta1, beta2, eps, weight_decay;
};

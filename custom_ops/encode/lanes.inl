// SPDX-License-Identifier: Apache-2.0
// Vectors of kWidth floats, one lane for each row, in whatever instruction set the including file has switched on. Only
// operations that IEEE 754 defines to the last bit: every machine, and NumPy, gets the same numbers.

using Floats = float __attribute__((vector_size(kWidth * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kWidth * sizeof(float))));
using Bytes = uint8_t __attribute__((vector_size(kWidth)));

inline Floats load(const float* values) {
  Floats result;
  std::memcpy(&result, values, sizeof result);
  return result;
}

inline Floats all(float value) { return Floats{} + value; }
inline Ints bits(Floats value) { return reinterpret_cast<Ints>(value); }
inline Floats from_bits(Ints value) { return reinterpret_cast<Floats>(value); }
inline Floats select(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }
inline Floats least(Floats a, Floats b) { return a < b ? a : b; }
inline Floats greatest(Floats a, Floats b) { return a > b ? a : b; }
inline Floats magnitude(Floats value) { return from_bits(bits(value) & 0x7fffffff); }

/// To the nearest integer, ties to even; |value| below 2^22.
inline Floats round_integer(Floats value) {
  const Floats magic = all(0x1.8p23f);
  return (value + magic) - magic;
}

/// To the nearest float of few mantissa bits, ties to even, subnormals included; larger values become `largest`.
inline Floats round_float(Floats value, int mantissa, int min_exponent, float largest) {
  const Floats size = least(magnitude(value), all(largest));
  const Ints least_bits = Ints{} + ((127 + min_exponent) << 23);
  const Ints exponent = bits(size) & 0x7f800000;
  // 1.5 * 2^23 times the distance between neighbours: adding it leaves no bits below that distance.
  const Floats magic = from_bits(((exponent > least_bits ? exponent : least_bits) + ((23 - mantissa) << 23)) | 0x400000);
  return from_bits(bits((size + magic) - magic) | (bits(value) & INT32_MIN));
}

inline Floats round_half(Floats value) { return round_float(value, 10, -14, 65504.0f); }

/// 1 / value; 0 where value is too small to have a finite inverse.
inline Floats inverse(Floats value) {
  const Ints usable = magnitude(value) >= all(0x1p-126f);
  return select(usable, all(1.0f) / select(usable, value, all(1.0f)), Floats{});
}

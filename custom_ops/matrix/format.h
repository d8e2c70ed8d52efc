// SPDX-License-Identifier: Apache-2.0
// The formats that weights are stored in, by the names that graphs use (attribute `format`).
#pragma once

#include <cstdint>
#include <string>

namespace poptransformer {

/// The 8-bit floats come last, in the order of `kFloat8Formats`.
enum class Format { kFloat32, kFloat16, kBFloat16, kInt4, kInt8, kE4M3FN, kE5M2, kE4M3FNUZ, kE5M2FNUZ };

/// Depth of a chunk of a packed weight: 16 rows x 32 columns.
constexpr int64_t kChunk = 32;

inline bool is_integer(Format format) { return format == Format::kInt4 || format == Format::kInt8; }
inline bool is_float8(Format format) { return format >= Format::kE4M3FN; }
inline bool is_packed(Format format) { return format >= Format::kInt4; }
/// Integer weights are multiplied with activations rounded to int8; see quantized_rows.h.
inline bool takes_quantized_rows(Format format) { return is_integer(format); }

/// Sets `format` to the packed format of that name. @returns whether there is one.
inline bool parse_packed_format(const std::string& name, Format* format) {
  struct Entry {
    const char* name;
    Format format;
  };
  constexpr Entry kEntries[] = {{"int4", Format::kInt4},         {"int8", Format::kInt8},
                                {"e4m3fn", Format::kE4M3FN},     {"e5m2", Format::kE5M2},
                                {"e4m3fnuz", Format::kE4M3FNUZ}, {"e5m2fnuz", Format::kE5M2FNUZ}};
  for (const Entry& entry : kEntries) {
    if (name != entry.name) continue;
    *format = entry.format;
    return true;
  }
  return false;
}

}  // namespace poptransformer

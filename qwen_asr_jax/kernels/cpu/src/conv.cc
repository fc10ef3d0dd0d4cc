// Nine products, one per tap of the filter, of rows that are never copied side by side: the tile of output positions takes its
// vectors straight from the image, and from a row of zeros where the filter reaches over the edge.

#include "conv.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "half.h"
#include "product.h"
#include "scratch.h"

namespace qwen_asr {

namespace {

constexpr int64_t kTaps = 9;

// With so few channels the nine taps together make one product of a useful depth.
constexpr int64_t kThin = 8;

// Tiles of output positions per piece: as many as the second cache holds, because every panel of weights passes them all.
constexpr int64_t kTiles = 4;

class ConvJob {
 public:
  ConvJob(const Conv& conv, int threads) : c_(conv), kernels_(BestKernels()), thin_(conv.c_in <= kThin) {
    packed_ = kernels_.packed_type(c_.weights);
    size_ = static_cast<int64_t>(SizeOf(packed_));
    taps_ = thin_ ? 1 : kTaps;
    depth_ = thin_ ? kTaps * c_.c_in : c_.c_in;
    padded_ = packed_ == Type::kBF16 ? (depth_ + 1) / 2 * 2 : depth_;
    panels_ = (c_.c_out + kernels_.panel - 1) / kernels_.panel;
    weights_.Reset(panels_ * taps_ * padded_ * kernels_.panel * size_);
    zeros_.Reset(c_.c_in);
    std::fill(zeros_.data(), zeros_.data() + c_.c_in, 0.0f);
    per_piece_ = kTiles * kernels_.tile_rows;
    pack_.Init(panels_ * taps_, threads);
    multiply_.Init((c_.rows() + per_piece_ - 1) / per_piece_, threads);
  }

  void Work(int thread) {
    Buffer<uint8_t> tiles;
    Buffer<float> sums;
    pack_.Run(thread, [&](int64_t piece) {
      const int64_t panel = piece / taps_, tap = piece % taps_, column = panel * kernels_.panel;
      const int64_t at = tap * depth_ * c_.c_out + column;
      kernels_.pack_depth(c_.weights, static_cast<const uint8_t*>(c_.weight) + at * static_cast<int64_t>(SizeOf(c_.weights)),
                          c_.c_out, std::min(kernels_.panel, c_.c_out - column), depth_, Panel(panel, tap));
    });
    pack_.Wait();
    multiply_.Run(thread, [&](int64_t piece) { Piece(piece * per_piece_, tiles, sums); });
    multiply_.Wait();
  }

 private:
  uint8_t* Panel(int64_t panel, int64_t tap) {
    return weights_.data() + (panel * taps_ + tap) * padded_ * kernels_.panel * size_;
  }

  void Piece(int64_t begin, Buffer<uint8_t>& tiles, Buffer<float>& sums) {
    const int64_t rows = std::min(per_piece_, c_.rows() - begin), most = kernels_.tile_rows, panel = kernels_.panel;
    const int64_t tile_bytes = most * padded_ * size_;
    tiles.Reset(kTiles * taps_ * tile_bytes);
    sums.Reset(rows * panel);
    for (int64_t first = 0; first < rows; first += most) {
      PackPositions(begin + first, std::min(most, rows - first), tiles.data() + first / most * taps_ * tile_bytes, tile_bytes);
    }
    const int64_t out_size = static_cast<int64_t>(SizeOf(c_.weights));
    for (int64_t p = 0; p < panels_; ++p) {
      for (int64_t tap = 0; tap < taps_; ++tap) {
        for (int64_t first = 0; first < rows; first += most) {
          kernels_.multiply(packed_, tiles.data() + (first / most * taps_ + tap) * tile_bytes, std::min(most, rows - first),
                            depth_, Panel(p, tap), sums.data() + first * panel, panel, tap > 0);
        }
      }
      const int64_t column = p * panel, columns = std::min(panel, c_.c_out - column);
      for (int64_t r = 0; r < rows; ++r) {
        float* each = sums.data() + r * panel;
        kernels_.finish(each, columns, nullptr, c_.bias + column, nullptr, each);
      }
      kernels_.gelu(sums.data(), rows * panel);  // columns behind the last are zeros
      for (int64_t r = 0; r < rows; ++r) {
        kernels_.store(c_.weights, sums.data() + r * panel, columns,
                       static_cast<uint8_t*>(c_.out) + ((begin + r) * c_.c_out + column) * out_size);
      }
    }
  }

  // The inputs of `count` output positions, tap by tap.
  void PackPositions(int64_t begin, int64_t count, uint8_t* out, int64_t tap_bytes) {
    const void* inputs[kTaps][16];
    const int64_t times = c_.time_out(), freqs = c_.freq_out(), size = static_cast<int64_t>(SizeOf(c_.input));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t position = begin + i, f = position % freqs, t = position / freqs % times, n = position / freqs / times;
      for (int64_t tap = 0; tap < kTaps; ++tap) {
        const int64_t y = 2 * t + tap / 3 - 1, x = 2 * f + tap % 3 - 1;
        const bool inside = y >= 0 && y < c_.time && x >= 0 && x < c_.freq;
        inputs[tap][i] = inside ? static_cast<const uint8_t*>(c_.x) + ((n * c_.time + y) * c_.freq + x) * c_.c_in * size
                                : static_cast<const void*>(zeros_.data());
      }
    }
    if (!thin_) {
      for (int64_t tap = 0; tap < kTaps; ++tap) {
        kernels_.pack_tile(c_.weights, c_.input, inputs[tap], count, depth_, out + tap * tap_bytes);
      }
      return;
    }
    float side_by_side[16][kTaps * kThin];
    const void* rows[16];
    for (int64_t i = 0; i < count; ++i) {
      rows[i] = side_by_side[i];
      for (int64_t tap = 0; tap < kTaps; ++tap) {
        for (int64_t c = 0; c < c_.c_in; ++c) side_by_side[i][tap * c_.c_in + c] = Value(inputs[tap][i], c);
      }
    }
    kernels_.pack_tile(c_.weights, Type::kF32, rows, count, depth_, out);
  }

  float Value(const void* from, int64_t i) const {
    if (c_.input == Type::kF32) return static_cast<const float*>(from)[i];
    const uint16_t bits = static_cast<const uint16_t*>(from)[i];
    return c_.input == Type::kBF16 ? FromBF16(bits) : FromF16(bits);
  }

  const Conv c_;
  const Kernels& kernels_;
  const bool thin_;
  Type packed_;
  int64_t size_, taps_, depth_, padded_, panels_, per_piece_;
  Buffer<uint8_t> weights_;
  Buffer<float> zeros_;
  Phase pack_, multiply_;
};

}  // namespace

void RunConv(const Conv& conv, Pool& pool) {
  const int threads = ThreadsOf(pool);
  RunOnTeam(std::make_shared<ConvJob>(conv, threads), pool, threads);
}

}  // namespace qwen_asr

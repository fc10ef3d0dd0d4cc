// Products of many vectors with a weight matrix, cut into pieces that any thread can take.

#ifndef QWEN_ASR_JAX_KERNELS_CPU_PRODUCT_H_
#define QWEN_ASR_JAX_KERNELS_CPU_PRODUCT_H_

#include <algorithm>
#include <cstdint>

#include "kernels.h"
#include "scratch.h"

namespace qwen_asr {

struct Matrix {
  const void* values;
  const float* scales;  // of int8 rows, else null
  int64_t rows;
  int64_t cols;

  const uint8_t* Row(Type type, int64_t row) const {
    return static_cast<const uint8_t*>(values) + row * cols * static_cast<int64_t>(SizeOf(type));
  }
};

// Up to so many vectors it is best to read the weights as they are, and beyond to pack them.
constexpr int64_t kFewRows = 8;

// Depth that is multiplied at once: a panel of it stays in the first cache while all tiles pass. Even, for pairs.
inline int64_t BlockDepth(const Kernels& kernels, Type packed, int64_t depth) {
  constexpr int64_t kPanelBytes = 32 << 10;
  const int64_t most = kPanelBytes / (kernels.panel * static_cast<int64_t>(SizeOf(packed)));
  const int64_t blocks = (depth + most - 1) / most;
  return ((depth + blocks - 1) / blocks + 1) / 2 * 2;
}

// Vectors packed for products with weights of one type: blocks of depth, in each of them tiles of nearly equal heights. So a product
// reads them in the order of memory.
class PackedRows {
 public:
  void Init(const Kernels& kernels, Type weights, int64_t rows, int64_t depth) {
    Init(kernels, weights, rows, depth, BlockDepth(kernels, kernels.packed_type(weights), depth));
  }

  // With blocks of another depth, which is even or all of it.
  void Init(const Kernels& kernels, Type weights, int64_t rows, int64_t depth, int64_t block) {
    weights_ = weights;
    rows_ = rows;
    depth_ = depth;
    block_ = block;
    tiles_ = (rows + kernels.tile_rows - 1) / kernels.tile_rows;
    const Type packed = kernels.packed_type(weights);
    unit_ = packed == Type::kBF16 ? 2 : 1;
    size_ = static_cast<int64_t>(SizeOf(packed));
    data_.Reset(rows * Padded(depth) * size_);
  }

  Type weights() const { return weights_; }
  int64_t tiles() const { return tiles_; }
  int64_t block() const { return block_; }
  int64_t Begin(int64_t tile) const { return rows_ * tile / tiles_; }
  int64_t Rows(int64_t tile) const { return Begin(tile + 1) - Begin(tile); }

  // A tile's part of the block that begins at value k.
  const uint8_t* Tile(int64_t tile, int64_t k) const {
    const int64_t depth = Padded(std::min(block_, depth_ - k));
    return data_.data() + (rows_ * k + Begin(tile) * depth) * size_;
  }
  uint8_t* Tile(int64_t tile, int64_t k) { return const_cast<uint8_t*>(const_cast<const PackedRows*>(this)->Tile(tile, k)); }

  // Packs a tile from its vectors, in floats.
  void Pack(const Kernels& kernels, int64_t tile, const float* const* rows) {
    const int64_t count = Rows(tile);
    const void* from[16];
    for (int64_t k = 0; k < depth_; k += block_) {
      for (int64_t i = 0; i < count; ++i) from[i] = rows[i] + k;
      kernels.pack_tile(weights_, Type::kF32, from, count, std::min(block_, depth_ - k), Tile(tile, k));
    }
  }

 private:
  int64_t Padded(int64_t depth) const { return (depth + unit_ - 1) / unit_ * unit_; }

  Type weights_ = Type::kF32;
  int64_t rows_ = 0, depth_ = 0, block_ = 0, tiles_ = 0, unit_ = 1, size_ = 0;
  Buffer<uint8_t> data_;
};

// What one thread needs while it works on products.
struct ProductScratch {
  Buffer<float> rows;
  Buffer<uint8_t> panel;
  Buffer<float> sums;
  Buffer<float> more_sums;
};

// Packs one tile from the vectors that `fill(row, x)` writes.
template <typename Fill>
void PackTile(const Kernels& kernels, PackedRows& to, int64_t tile, int64_t depth, ProductScratch& scratch, const Fill& fill) {
  const int64_t begin = to.Begin(tile), count = to.Rows(tile);
  scratch.rows.Reset(kernels.tile_rows * depth);
  const float* rows[16];
  for (int64_t i = 0; i < count; ++i) {
    float* x = scratch.rows.data() + i * depth;
    fill(begin + i, x);
    rows[i] = x;
  }
  to.Pack(kernels, tile, rows);
}

// Packs one tile of a matrix [rows, depth] in floats, as it lies there.
inline void PackTile(const Kernels& kernels, PackedRows& to, int64_t tile, int64_t depth, const float* x) {
  const float* rows[16];
  for (int64_t i = 0; i < to.Rows(tile); ++i) rows[i] = x + (to.Begin(tile) + i) * depth;
  to.Pack(kernels, tile, rows);
}

// A piece is one panel of weight rows and up to kTilesPerPiece tiles of vectors.
constexpr int64_t kTilesPerPiece = 64;

inline int64_t TileBlocks(const PackedRows& x) { return (x.tiles() + kTilesPerPiece - 1) / kTilesPerPiece; }

inline int64_t ProductPieces(const Kernels& kernels, const Matrix& m, const PackedRows& x) {
  return (m.rows + kernels.panel - 1) / kernels.panel * TileBlocks(x);
}

struct ProductPiece {
  int64_t column, columns;          // of the result, which are rows of the weights
  int64_t first_tile, end_tile;
  int64_t row, rows;                // of the vectors
};

inline ProductPiece PieceOf(const Kernels& kernels, const Matrix& m, const PackedRows& x, int64_t piece) {
  const int64_t blocks = TileBlocks(x), block = piece % blocks;
  ProductPiece p;
  p.column = piece / blocks * kernels.panel;
  p.columns = std::min(kernels.panel, m.rows - p.column);
  p.first_tile = x.tiles() * block / blocks;
  p.end_tile = x.tiles() * (block + 1) / blocks;
  p.row = x.Begin(p.first_tile);
  p.rows = x.Begin(p.end_tile) - p.row;
  return p;
}

// sums[i * panel + j] = the product of vector p.row + i with weight row p.column + j, without the rows' scales.
void MultiplyPiece(const Kernels& kernels, const Matrix& m, const PackedRows& x, const ProductPiece& p, Buffer<uint8_t>& panel,
                   Buffer<float>& sums);

// The whole of a piece; `write(row, sums, column, columns)` takes one row of it, and may change the sums.
template <typename Write>
void Multiply(const Kernels& kernels, const Matrix& m, const PackedRows& x, int64_t piece, ProductScratch& scratch,
              const Write& write) {
  const ProductPiece p = PieceOf(kernels, m, x, piece);
  MultiplyPiece(kernels, m, x, p, scratch.panel, scratch.sums);
  for (int64_t i = 0; i < p.rows; ++i) write(p.row + i, scratch.sums.data() + i * kernels.panel, p.column, p.columns);
}

inline const float* At(const float* values, int64_t i) { return values == nullptr ? nullptr : values + i; }

}  // namespace qwen_asr

#endif

#include "linear.h"

#include <cstring>
#include <memory>

#include "rows.h"
#include "team.h"

namespace qwen_asr {

namespace {

class FewRowsJob {
 public:
  FewRowsJob(const Linear& linear, int threads) : l_(linear), kernels_(BestKernels()) {
    phase_.Init(Pieces(l_.weights, l_.matrix), threads);
  }

  void Work(int thread) {
    Operands x;
    const int64_t depth = l_.matrix.cols, columns = l_.matrix.rows;
    phase_.Run(thread, [&](int64_t piece) {
      if (!x.ready()) {
        x.Make(kernels_, l_.weights, l_.rows, depth,
               [&](int64_t r, float* to) { std::memcpy(to, l_.x + r * depth, depth * sizeof(float)); });
      }
      DotPiece(kernels_, l_.weights, l_.matrix, piece, x.data(), l_.rows, l_.out, columns);
      if (l_.bias == nullptr) return;
      const int64_t per_piece = RowsPerPiece(l_.weights, l_.matrix);
      const int64_t begin = piece * per_piece, size = std::min(per_piece, columns - begin);
      for (int64_t r = 0; r < l_.rows; ++r) {
        float* out = l_.out + r * columns + begin;
        kernels_.finish(out, size, nullptr, l_.bias + begin, nullptr, out);
      }
    });
    phase_.Wait();
  }

 private:
  const Linear l_;
  const Kernels& kernels_;
  Phase phase_;
};

class ManyRowsJob {
 public:
  ManyRowsJob(const Linear& linear, int threads) : l_(linear), kernels_(BestKernels()) {
    x_.Init(kernels_, l_.weights, l_.rows, l_.matrix.cols);
    pack_.Init(x_.tiles(), threads);
    multiply_.Init(ProductPieces(kernels_, l_.matrix, x_), threads);
  }

  void Work(int thread) {
    ProductScratch scratch;
    pack_.Run(thread, [&](int64_t tile) { PackTile(kernels_, x_, tile, l_.matrix.cols, l_.x); });
    pack_.Wait();
    multiply_.Run(thread, [&](int64_t piece) {
      Multiply(kernels_, l_.matrix, x_, piece, scratch, [&](int64_t r, const float* sums, int64_t column, int64_t columns) {
        kernels_.finish(sums, columns, At(l_.matrix.scales, column), At(l_.bias, column), nullptr,
                        l_.out + r * l_.matrix.rows + column);
      });
    });
    multiply_.Wait();
  }

 private:
  const Linear l_;
  const Kernels& kernels_;
  PackedRows x_;
  Phase pack_, multiply_;
};

}  // namespace

void RunLinear(const Linear& linear, Pool& pool) {
  const int threads = ThreadsOf(pool);
  if (linear.rows <= kFewRows) {
    RunOnTeam(std::make_shared<FewRowsJob>(linear, threads), pool, threads);
  } else {
    RunOnTeam(std::make_shared<ManyRowsJob>(linear, threads), pool, threads);
  }
}

}  // namespace qwen_asr

// Attention of several queries to one head's keys and values, as the encoder and blocks of new tokens use it.

#include <algorithm>
#include <memory>

#include "attention.h"
#include "testing.h"
#include "values.h"

namespace native {

namespace {

struct Shape {
  int64_t rows, width, stride, slots;
};

struct Problem {
  Shape shape;
  Type type;
  Packed keys, values;
  Floats q;
  std::vector<int64_t> limits;
  std::vector<Values> want;
};

// Where no slot is behind the last limit, the memory ends with its last value. NaN lies between the heads.
Problem Make(Type type, const Shape& s, int64_t least) {
  Random random(static_cast<uint64_t>(s.rows * 1000 + s.width * 10 + s.slots));
  const int64_t size = s.slots > 0 ? (s.slots - 1) * s.stride + s.width : 0;
  Floats keys = random.Normals(size, 1.5), values = random.Normals(size);
  for (int64_t i = 0; i < size; ++i) {
    if (i % s.stride >= s.width) keys[i] = values[i] = kNan;
  }
  Problem p{s, type, Pack(type, keys, 1), Pack(type, values, 1), random.Normals(s.rows * s.width), {}, {}};
  for (int64_t r = 0; r < s.rows; ++r) p.limits.push_back(std::min(s.slots, least + random.Below(s.slots - least + 1)));
  if (s.rows > 0) p.limits.back() = s.slots;
  const Values all_keys = Exactly(p.keys.values), all_values = Exactly(p.values.values);
  for (int64_t r = 0; r < s.rows; ++r) {
    Slots slots;
    for (int64_t i = 0; i < p.limits[r]; ++i) {
      slots.keys.push_back(&all_keys[i * s.stride]);
      slots.values.push_back(&all_values[i * s.stride]);
    }
    const bool rounded = s.rows >= 8 || s.stride != s.width;
    p.want.push_back(AttentionOf(type, Exactly(p.q.data() + r * s.width, s.width), slots, rounded));
  }
  return p;
}

void Compare(const Problem& p, qwen_asr::AttentionScratch& scratch) {
  const Shape& s = p.shape;
  Floats out(s.rows * s.width, kNan);
  std::vector<const float*> q;
  std::vector<float*> to;
  for (int64_t r = 0; r < s.rows; ++r) {
    q.push_back(p.q.data() + r * s.width);
    to.push_back(out.data() + r * s.width);
  }
  const qwen_asr::Attention attention = {p.type, s.width, s.stride, p.keys.bytes.data(), p.values.bytes.data()};
  Attend(qwen_asr::BestKernels(), attention, s.rows, q.data(), p.limits.data(), to.data(), scratch);
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t i = 0; i < s.width; ++i) ExpectValue(out[r * s.width + i], p.want[r][i], "value ", i, " of query ", r);
  }
}

}  // namespace

void AddAttentionCases(Cases& cases, bool quick) {
  const auto scratch = std::make_shared<qwen_asr::AttentionScratch>();  // the same for all of them
  std::vector<Shape> shapes = {{1, 64, 64, 40}, {9, 64, 128, 33}, {3, 5, 15, 7}, {13, 3, 3, 1}, {30, 80, 80, 0}, {5, 16, 16, 0}};
  if (!quick) {
    shapes.insert(shapes.end(), {{7, 64, 64, 300}, {8, 64, 64, 300}, {104, 64, 896, 104}, {2, 1, 4, 9}, {12, 1, 1, 2}, {26, 80, 80, 31},
                                 {25, 128, 128, 32}, {64, 10, 30, 65}, {11, 130, 130, 17}, {1, 7, 14, 1}, {128, 40, 40, 700}});
  }
  for (Type type : kCacheTypes) {
    for (Shape shape : shapes) {
      for (int64_t least : {int64_t{0}, shape.slots}) {
        cases.AddPrepared(Join("attention ", NameOf(type), " ", shape.rows, " x ", shape.slots, ", ", shape.width, " of ",
                               shape.stride, ", from ", least),
                          [=] {
                            const auto p = std::make_shared<Problem>(Make(type, shape, least));
                            return [=] { Compare(*p, *scratch); };
                          });
      }
    }
  }
}

}  // namespace native

// Forward passes of a GPT-2 and a draw for each row, on a CPU, for a few hundred rows at most.
//
// A *pass* is a list of M tokens, each with its position and the cache slot it belongs to: running candidates bring one token each, a
// prompt being read brings several of one slot. All of them go through the layers together, without padding. Arithmetic of a token
// does not depend on what else is in the pass: sums run over the same indices in the same order whatever M is, so the result
// is the same to the last bit alone or in any company.
//
// Linear layers are packed into panels of 64 columns. Precisions: f32; bf16 (sums in f32; activations are rounded too where AVX512-BF16 multiplies
// them); int8 (weights with a scale for each column, activations quantized for each row as they come; needs AVX-512 VNNI). Threads divide columns, heads or rows between them and
// meet at spinning barriers: a barrier costs a fraction of a microsecond, a pass of a small model some tens.
//
// Compiled by native/compiler.py for the machine at hand; called by native/model.py through a C interface. Source of the mathematics:
// Radford et al. 2019 (pre-norm blocks), in the form of transformers' GPT2LMHeadModel.

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;         // floats in a vector
constexpr int kVectors = 4;        // vectors in a panel
constexpr int kPanel = kLanes * kVectors;
#if defined(__AVX512F__)
constexpr int kRows = 6;           // rows computed together: 6 x 4 sums and 4 weights fit the 32 registers
#else
constexpr int kRows = 1;
#endif

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint32_t BitVec __attribute__((vector_size(64)));
typedef uint16_t HalfVec __attribute__((vector_size(32)));
typedef uint8_t ByteVec __attribute__((vector_size(16)));

Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// bfloat16: the upper half of a float.
struct Bfloat {
  uint16_t bits;
};
Vec load(const Bfloat* p) {
  HalfVec half;
  std::memcpy(&half, p, sizeof half);
  const BitVec wide = __builtin_convertvector(half, BitVec) << 16;
  Vec v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}
void store(Bfloat* p, Vec v) {
  BitVec bits;
  std::memcpy(&bits, &v, sizeof bits);
  const HalfVec half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, HalfVec);  // to nearest, ties to even
  std::memcpy(p, &half, sizeof half);
}
Vec broadcast(float x) { return x - Vec{}; }
Bfloat to_bfloat(float x) {
  Bfloat all[kLanes];
  store(all, broadcast(x));
  return all[0];
}

// By halves: the same tree on every machine.
float sum(Vec v) {
  typedef float Half __attribute__((vector_size(32)));
  typedef float Quarter __attribute__((vector_size(16)));
  Half h[2];
  std::memcpy(h, &v, sizeof v);
  h[0] += h[1];
  Quarter q[2];
  std::memcpy(q, h, sizeof q);
  q[0] += q[1];
  return (q[0][0] + q[0][2]) + (q[0][1] + q[0][3]);
}

float largest(Vec v) {
  float best = v[0];
  for (int i = 1; i < kLanes; ++i) best = std::max(best, v[i]);
  return best;
}

// e^x to about 1e-7 relative, after Cephes' expf: x = n ln 2 + r, a polynomial in r, n into the exponent.
Vec exponential(Vec x) {
  const Vec low = broadcast(-87.33f), high = broadcast(88.37f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  Vec scaled = x * 1.44269504088896341f;
  IntVec n = __builtin_convertvector(scaled + (scaled < 0.0f ? broadcast(-0.5f) : broadcast(0.5f)), IntVec);
  Vec whole = __builtin_convertvector(n, Vec);
  Vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  Vec p = broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  IntVec power = (n + 127) << 23;
  Vec two_to_n;
  std::memcpy(&two_to_n, &power, sizeof two_to_n);
  return p * two_to_n;
}

// x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3): GPT-2's approximate GELU.
Vec gelu(Vec x) {
  Vec u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exponential(-2.0f * u));
}

// Asks for a line of 64 bytes that will be read soon. The address need not exist.
void prefetch(const void* p) {
#if defined(__x86_64__)
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
#endif
}

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// ---- threads --------------------------------------------------------------------------------------------------------

// A team that runs one function at a time, on all its threads or on the caller's alone; the caller is thread 0. Between jobs the others spin for a
// moment (the next step usually comes at once), then sleep.
class Team {
 public:
  // Throws std::system_error if the system gives no more threads.
  explicit Team(int most) : most_(most) {
    try {
      for (int index = 1; index < most; ++index) threads_.emplace_back([this, index] { serve(index); });
    } catch (...) {
      end();
      throw;
    }
  }
  ~Team() { end(); }

  template <class Job>
  void run(Job& job, bool is_together = true) {
    size_ = is_together ? most_ : 1;
    if (size_ == 1) return job(0);
    job_ = [](void* context, int index) { (*static_cast<Job*>(context))(index); };
    context_ = &job;
    epoch_.fetch_add(1, std::memory_order_seq_cst);  // before the look at sleepers_, as a sleeper looks the other way round
    if (sleepers_.load(std::memory_order_seq_cst)) epoch_.notify_all();
    job(0);
    barrier();
  }

  void barrier() {
    const int size = size_;  // of this job: once all have arrived, the caller may begin another one
    if (size == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
      if (spins < kBarrierSpins) pause();
      else sched_yield();  // a neighbour may have our partner's core
    }
  }

  int most() const { return most_; }  // threads there are
  int size() const { return size_; }  // threads that run the job

 private:
  void end() {
    ending_ = true;
    epoch_.fetch_add(1, std::memory_order_seq_cst);
    epoch_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  static constexpr int kBarrierSpins = 4000;
  static constexpr int kIdleSpins = 60000;  // about a millisecond: what Python needs between two steps is less

  void serve(int index) {
    uint32_t done = 0;
    while (true) {
      for (int spins = 0; epoch_.load(std::memory_order_acquire) == done;) {
        if (++spins < kIdleSpins) {
          pause();
          continue;
        }
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        epoch_.wait(done, std::memory_order_seq_cst);
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
      }
      ++done;
      if (ending_) return;
      job_(context_, index);
      barrier();
    }
  }

  const int most_;
  int size_ = 1;
  std::vector<std::thread> threads_;
  void (*job_)(void*, int) = nullptr;
  void* context_ = nullptr;
  bool ending_ = false;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// Whether passes of about one size go faster on all threads (together) or on one (alone). Together is fast as long as every thread has a core: one that a
// neighbour keeps off its core is waited for at every barrier, and a pass takes many times as long. The way in use is kept while it is the faster; the other
// one is tried now and then, as often as what is lost by it stays a small share of the time.
class Pace {
 public:
  bool is_together() const { return is_trial_ != is_together_; }

  void took(double seconds) {
    const bool was_together = is_together();
    const double steady = std::min(seconds, last_);  // one slow pass is an accident, two are a state
    last_ = is_trial_ ? kUnknown : seconds;
    if (is_trial_) lost_ += std::max(0.0, seconds - expected_[!was_together]);
    lost_ = std::clamp(lost_ - kShareLost * seconds, 0.0, kMostLost);
    ++passes_;
    if (is_trial_) return judge(was_together, seconds);
    expected_[was_together] += (steady - expected_[was_together]) / kMemory;
    if (was_together && expected_[true] > kClearly * expected_[false]) is_together_ = false, passes_ = 0;
    if (passes_ >= kPause && lost_ == 0) is_trial_ = true, passes_ = 0;
  }

 private:
  // The first passes of a trial only wake the sleeping threads (a host may take milliseconds to give a core back). Then it is the median of five, or one
  // that is far too slow.
  void judge(bool was_together, double seconds) {
    if (passes_ <= kWaking) return;
    const int judged = passes_ - kWaking;
    trial_[judged - 1] = seconds;
    if (judged < kJudged && seconds < 4 * expected_[!was_together]) return;
    std::sort(trial_, trial_ + judged);
    expected_[was_together] = trial_[judged / 2];
    is_together_ = expected_[true] <= kClearly * expected_[false];
    is_trial_ = expected_[!was_together] == kUnknown;  // the first passes of all: both ways
    passes_ = 0;
  }

  static constexpr double kMemory = 16;                          // passes that an expectation looks back
  static constexpr double kClearly = 1.2;                        // times slower together, before they part: times on shared machines say little
  static constexpr double kShareLost = 0.005, kMostLost = 0.01;  // of the time; seconds: the next trial is two seconds of passes away at most
  static constexpr int kPause = 16;                              // passes between trials, at least
  static constexpr int kWaking = 3, kJudged = 5;                 // passes of a trial
  static constexpr double kUnknown = std::numeric_limits<double>::infinity();

  double expected_[2] = {kUnknown, kUnknown};  // seconds of a pass alone, together
  double last_ = kUnknown, trial_[kJudged] = {};
  double lost_ = 0;           // seconds that trials took beyond what was expected of the way in use, less what is forgiven
  bool is_together_ = false;  // the way in use
  bool is_trial_ = true;      // of the other way
  int passes_ = 0;
};

struct Share {
  int64_t begin, end;
};
Share share(int64_t count, int index, int size) { return {count * index / size, count * (index + 1) / size}; }

// ---- memory ---------------------------------------------------------------------------------------------------------

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Free>;

template <class T>
Buffer<T> buffer(int64_t count) {
  const size_t bytes = (count * sizeof(T) + 63) / 64 * 64 + 64;
  void* p = std::aligned_alloc(64, bytes);
  if (!p) throw std::bad_alloc();
  std::memset(p, 0, bytes);
  return Buffer<T>(static_cast<T*>(p));
}

// ---- linear layers --------------------------------------------------------------------------------------------------

enum Precision { kFloat = 0, kBfloat = 1, kInt8 = 2 };
#if defined(__AVX512BF16__)
constexpr bool kHasBfloatProducts = true;
#else
constexpr bool kHasBfloatProducts = false;
#endif

// Whether activations are multiplied in another form than floats.
constexpr bool lowers_activations(Precision precision) { return precision == kInt8 || (precision == kBfloat && kHasBfloatProducts); }

// Where packed weights lie: a few large blocks, zero at first, in huge pages where the system has them (reading them once a step is half as fast
// again: fewer page tables to walk). Given back together.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (const Block& block : blocks_) munmap(block.at, block.bytes);
  }

  template <class T>
  T* take(int64_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    if (bytes > left_) add(std::max(bytes, kBlockBytes));
    char* taken = next_;
    next_ += bytes, left_ -= bytes;
    return reinterpret_cast<T*>(taken);
  }

 private:
  struct Block {
    void* at;
    size_t bytes;
  };
  static constexpr size_t kHugePage = 2 << 20, kBlockBytes = 32 << 20;

  void add(size_t bytes) {
    const Block block{mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), bytes + kHugePage};
    if (block.at == MAP_FAILED) throw std::bad_alloc();
    blocks_.push_back(block);
    next_ = static_cast<char*>(block.at) + (-reinterpret_cast<uintptr_t>(block.at) & (kHugePage - 1));
    left_ = bytes;
#if defined(MADV_HUGEPAGE)
    madvise(next_, left_, MADV_HUGEPAGE);
#endif
  }

  std::vector<Block> blocks_;
  char* next_ = nullptr;
  size_t left_ = 0;
};

// Rows of activations: floats, and their lower form: rounded, or quantized with a scale for each row.
struct Activations {
  Precision precision = kFloat;
  int64_t width = 0, capacity = 0;
  Buffer<float> floats;
  Buffer<Bfloat> halves;
  Buffer<uint8_t> bytes;  // quantized value + 128
  Buffer<float> scales;

  // Throws std::bad_alloc; the next call tries again.
  void reserve(int64_t rows, int64_t new_width) {
    if (rows <= capacity && new_width <= width) return;
    capacity = 0;
    floats = buffer<float>(rows * new_width);
    if (precision == kBfloat) halves = buffer<Bfloat>(rows * new_width);
    if (precision == kInt8) bytes = buffer<uint8_t>(rows * new_width), scales = buffer<float>(rows);
    capacity = rows, width = new_width;
  }
  float* row(int64_t r) { return floats.get() + r * width; }
  const float* row(int64_t r) const { return floats.get() + r * width; }

  void lower(int64_t r) {
    if (precision == kInt8) return quantize(r);
    for (int64_t k = 0; k < width; k += kLanes) store(halves.get() + r * width + k, load(row(r) + k));
  }

 private:
  void quantize(int64_t r) {
    const float* x = row(r);
    Vec most{}, odd{};
    for (int64_t k = 0; k < width; k += kLanes) {
      Vec v = load(x + k);
      odd += v - v;
      v = v < 0.0f ? -v : v;
      most = v > most ? v : most;
    }
    const float peak = largest(most);
    scales[r] = peak / 127.0f + sum(odd);  // no number if one of the row is none: whoever draws from it will see
    const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
    uint8_t* out = bytes.get() + r * width;
    for (int64_t k = 0; k < width; k += kLanes) {
      IntVec q = __builtin_convertvector(load(x + k) * inverse + 128.5f, IntVec);
      ByteVec b = __builtin_convertvector(q, ByteVec);
      std::memcpy(out + k, &b, sizeof b);
    }
  }
};

// In each of 16 lanes: sum + the products of four unsigned and four signed bytes, or of two and two bfloats. GCC 12 surrounds the intrinsic functions
// with copies of the sums, Clang does not unroll loops over instructions that it cannot read: each gets what it keeps in registers.
#if defined(__AVX512VNNI__)
IntVec add_products(IntVec sum, IntVec unsigned_bytes, IntVec signed_bytes) {
#if defined(__clang__)
  return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
#else
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
  return sum;
#endif
}
#endif
#if defined(__AVX512BF16__)
Vec add_products(Vec sum, IntVec pairs, IntVec other_pairs) {
#if defined(__clang__)
  return _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)other_pairs);
#else
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(pairs), "v"(other_pairs));
  return sum;
#endif
}
#endif

IntVec load_bits(const void* p) {
  IntVec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
IntVec broadcast_bits(const void* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits - IntVec{};
}

// y = x W + b. W comes as [in, out] (GPT-2's Conv1D) or, for the head, as [out, in].
//
// A panel is stored in the order in which it is read: *steps* along k of 256 bytes, a k of 64 columns in f32, two k in bf16, four in int8, those of
// a column side by side as the processor multiplies them.
class Linear {
 public:
  void pack(
      Precision precision, const float* weight, const float* bias, int64_t in, int64_t out, bool is_transposed, Team& team, Arena& arena) {
    precision_ = precision, in_ = in, panels_ = (out + kPanel - 1) / kPanel;
    depth_ = precision == kFloat ? 1 : precision == kBfloat ? 2 : 4;
    weights_ = arena.take<char>(panels_ * panel_bytes());
    bias_ = arena.take<float>(panels_ * kPanel);
    if (bias) std::memcpy(bias_, bias, out * sizeof(float));
    if (precision == kInt8) scales_ = arena.take<float>(panels_ * kPanel), offsets_ = arena.take<int32_t>(panels_ * kPanel);
    auto job = [&](int index) {
      const Share mine = share(panels_, index, team.size());
      for (int64_t n = mine.begin * kPanel; n < std::min(mine.end * kPanel, out); ++n)
        pack_column(n, is_transposed ? weight + n * in : weight + n, is_transposed ? 1 : out);
    };
    team.run(job);
  }

  // Calls take(row, column, 16 values) for every vector of the result; this thread's share of the columns.
  template <class Take>
  void apply(const Activations& x, int64_t num_rows, int index, int size, Take take) const {
    const Share mine = share(panels_, index, size);
    const int64_t num_groups = (num_rows + kRows - 1) / kRows;
    for (int64_t panel = mine.begin; panel < mine.end; ++panel)
      for (int64_t group = 0; group < num_groups; ++group) {
        const Share rows = share(num_rows, group, num_groups);  // of nearly equal size
        with_rows<kRows>(rows.end - rows.begin, x, rows.begin, panel, ahead(panel + 1, group, num_groups), take);
      }
  }

 private:
  // What a group of rows fetches while it multiplies: its share of the next panel. The weights of a panel come from memory for the first group, which
  // would wait for them, and from the cache for the others, which would leave memory idle. A single group leaves it to the processor's
  // own prefetching, which is better at that.
  struct Ahead {
    const char* next;
    int64_t lines;  // of 64 bytes, for each step along k

    void fetch() {
      for (int64_t line = 0; line < lines; ++line) prefetch(next + 64 * line);
      next += 64 * lines;
    }
  };

  Ahead ahead(int64_t panel, int64_t group, int64_t num_groups) const {
    const int64_t lines = num_groups == 1 ? 0 : num_groups < kVectors ? 2 : 1;
    return {weights_ + panel * panel_bytes() + group * (in_ / depth_) * 64 * lines, lines};
  }

  int64_t panel_bytes() const { return in_ / depth_ * kStepBytes; }

  void pack_column(int64_t n, const float* column, int64_t stride) {
    const int64_t panel = n / kPanel, lane = n % kPanel;
    auto place = [&](int64_t k) { return ((panel * in_ + k) / depth_ * kPanel + lane) * depth_ + k % depth_; };
    if (precision_ == kFloat)
      for (int64_t k = 0; k < in_; ++k) reinterpret_cast<float*>(weights_)[place(k)] = column[k * stride];
    if (precision_ == kBfloat)
      for (int64_t k = 0; k < in_; ++k) reinterpret_cast<Bfloat*>(weights_)[place(k)] = to_bfloat(column[k * stride]);
    if (precision_ == kInt8) {
      float peak = 0;
      for (int64_t k = 0; k < in_; ++k) peak = std::max(peak, std::fabs(column[k * stride]));
      const float inverse = peak > 0 ? 127.0f / peak : 0.0f;
      int32_t total = 0;
      for (int64_t k = 0; k < in_; ++k) {
        const auto q = static_cast<int8_t>(std::lrintf(column[k * stride] * inverse));
        reinterpret_cast<int8_t*>(weights_)[place(k)] = q;
        total += q;
      }
      scales_[n] = peak / 127.0f;
      offsets_[n] = -128 * total;  // activations are stored with 128 added
    }
  }

  template <int R, class Take>
  void with_rows(int64_t count, const Activations& x, int64_t first, int64_t panel, Ahead ahead, Take& take) const {
    if constexpr (R > 1)
      if (count < R) return with_rows<R - 1>(count, x, first, panel, ahead, take);
    if (precision_ == kFloat) multiply_floats<R>(x, first, panel, ahead, take);
    if (precision_ == kBfloat) multiply_halves<R>(x, first, panel, ahead, take);
    if (precision_ == kInt8) multiply_bytes<R>(x, first, panel, ahead, take);
  }

  // The sums of a panel for R rows, from the bias (or offset) on.
  template <int R, class V>
  struct Sums {
    V at[R][kVectors];

    template <class T>
    explicit Sums(const T* start) {
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < kVectors; ++j) std::memcpy(&at[r][j], start + j * kLanes, sizeof(V));
    }
  };

  template <int R, class Take>
  void multiply_floats(const Activations& x, int64_t first, int64_t panel, Ahead ahead, Take& take) const {
    const char* w = weights_ + panel * panel_bytes();
    const float* row = x.row(first);
    Sums<R, Vec> sums(bias_ + panel * kPanel);
    for (int64_t k = 0; k < in_; ++k, w += kStepBytes) {
      Vec column[kVectors];
      for (int j = 0; j < kVectors; ++j) column[j] = load(reinterpret_cast<const float*>(w) + j * kLanes);
      ahead.fetch();
      for (int r = 0; r < R; ++r)
        for (int j = 0; j < kVectors; ++j) sums.at[r][j] += column[j] * row[r * x.width + k];
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kVectors; ++j) take(first + r, panel * kPanel + j * kLanes, sums.at[r][j]);
  }

  template <int R, class Take>
  void multiply_halves(const Activations& x, int64_t first, int64_t panel, Ahead ahead, Take& take) const {
    const char* w = weights_ + panel * panel_bytes();
    Sums<R, Vec> sums(bias_ + panel * kPanel);
    for (int64_t k = 0; k < in_; k += 2, w += kStepBytes) {
      IntVec pairs[kVectors];
      for (int j = 0; j < kVectors; ++j) pairs[j] = load_bits(w + 64 * j);
      ahead.fetch();
#if defined(__AVX512BF16__)
      for (int r = 0; r < R; ++r) {
        const IntVec pair = broadcast_bits(x.halves.get() + (first + r) * x.width + k);
        for (int j = 0; j < kVectors; ++j) sums.at[r][j] = add_products(sums.at[r][j], pair, pairs[j]);
      }
#else
      for (int odd = 0; odd < 2; ++odd)
        for (int j = 0; j < kVectors; ++j) {
          const IntVec bits = odd ? pairs[j] & static_cast<int32_t>(0xffff0000) : pairs[j] << 16;
          Vec column;
          std::memcpy(&column, &bits, sizeof column);
          for (int r = 0; r < R; ++r) sums.at[r][j] += column * x.row(first + r)[k + odd];
        }
#endif
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kVectors; ++j) take(first + r, panel * kPanel + j * kLanes, sums.at[r][j]);
  }

  template <int R, class Take>
  void multiply_bytes(const Activations& x, int64_t first, int64_t panel, Ahead ahead, Take& take) const {
#if defined(__AVX512VNNI__)
    const char* w = weights_ + panel * panel_bytes();
    Sums<R, IntVec> sums(offsets_ + panel * kPanel);
    for (int64_t k = 0; k < in_; k += 4, w += kStepBytes) {
      IntVec column[kVectors];
      for (int j = 0; j < kVectors; ++j) column[j] = load_bits(w + 64 * j);
      ahead.fetch();
      for (int r = 0; r < R; ++r) {
        const IntVec four = broadcast_bits(x.bytes.get() + (first + r) * x.width + k);
        for (int j = 0; j < kVectors; ++j) sums.at[r][j] = add_products(sums.at[r][j], four, column[j]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < kVectors; ++j) {
        const int64_t n = panel * kPanel + j * kLanes;
        const Vec exact = __builtin_convertvector(sums.at[r][j], Vec);
        take(first + r, n, exact * (load(scales_ + n) * x.scales[first + r]) + load(bias_ + n));
      }
#endif
  }

  static constexpr int64_t kStepBytes = 64 * kVectors;
  Precision precision_ = kFloat;
  int64_t in_ = 0, panels_ = 0, depth_ = 1;
  char* weights_ = nullptr;
  float *bias_ = nullptr, *scales_ = nullptr;
  int32_t* offsets_ = nullptr;
};

}  // namespace

// ---- what Python sees ------------------------------------------------------------------------------------------------

extern "C" {

struct Shape {
  int32_t vocabulary, window, width, layers, heads, inner;
  float epsilon;
};

// The slots of all sequences: keys and values are [layers, slots, heads, window, head_dim]. In precisions below f32 they are kept in bfloat16, which fills
// the front half of each [window, head_dim]: half as much to read in every step.
struct Cache {
  float *keys, *values;
  int64_t slots;
};

// One running candidate; mirrored by ROW in generation/memory.py.
struct Row {
  int64_t token_id;   // fed next
  int64_t position;   // where it stands
  uint64_t key;       // of its noise
  uint64_t beginning;  // says what stands before it: rows after the same tokens have the same; 0 where that is not known
  int64_t end_from;   // the first position where a token that ends it may stand
  float temperature;  // never 0
  float top_p;        // 1 when off
  float penalty;      // 1 when off
  float presence, frequency;  // 0 when off
  int32_t top_k;      // never 0: the vocabulary when off
  int32_t end_ids[4];  // further tokens that end it, -1 for none
  uint8_t is_greedy, wants_logprob, has_bias, is_forced, keeps_seen, num_top;
  uint8_t remembers;  // its passes are kept, and may be had of earlier ones
};

// The first `length` positions of slot `source` over those of `num_targets` slots; mirrored by Copy in generation/steps.py.
struct Copy {
  int32_t source, target, length, num_targets;
};

// What one pass computes: the next token of rows 0..num_rows-1 (row r stands in slot r), and `num_read` tokens of prompts. `last` are the
// indices of prompt tokens whose logits are wanted. Logits of a token go to its slot's line of `logits`. Of rows that are fed the same token after the same
// beginning one is computed, and the others get what it got; rows that remember, and last tokens with a beginning, get what an earlier pass gave.
// `num_shared` says how many these are. `secret` is the one of generation/beginning.py.
struct Pass {
  int64_t num_rows, num_read, num_last;
  Row* rows;
  const int32_t *token_ids, *positions, *slots, *last;
  const uint64_t* beginnings;  // [num_last], 0 for what is to be computed in any case
  uint64_t secret;
  float* logits;
  int64_t logits_stride;
  int64_t num_shared;
};

// Draws a token for rows 0..num_rows-1: the first `num_continuing` from the logits of their own slot, the others, which begin, from those
// of the slot of their prompt.
struct Draw {
  int64_t num_rows, num_continuing;
  Row* rows;
  const int32_t* prompt_slots;  // [num_rows - num_continuing]
  const float* logits;
  int64_t logits_stride;
  const float* bias;  // [vocabulary], -inf for what is never drawn
  uint8_t* seen;      // [rows, vocabulary]: 128 in the prompt, and how often it was drawn; kept up for rows with a penalty
  const float* row_bias;   // [rows, vocabulary], for rows that have one
  const int32_t* forced;   // [rows, window]: the token to stand at each position, for rows that are forced
  int64_t window, end_id;
  int32_t* token_ids;      // -1 where nothing could be drawn
  float* logprobs;
};

// Several steps, each a pass over the rows and a draw: `most`, but no further once `seconds` have passed, or something was drawn that may end a row. In
// turn `token_ids` and `logprobs` [most, rows] get what each step drew; `num_steps` were made.
struct Advance {
  int64_t most;
  double seconds;
  int32_t* token_ids;
  float* logprobs;
  int64_t num_steps, num_shared;
};

// A branch of a request, which `generation/first_draw.py` tells about: `slot` has the logits after it, `position` is where the next token stands. Ranges
// are in FirstDraw::ids. Written by FirstDraw.fill in native/branches.py.
struct Branch {
  int64_t slot, position;
  int64_t parent, token_id;           // the branch it goes on from, and with which token; -1 for the first one
  int64_t head_parent, head_id;       // the last step of its way that spells what was typed
  int64_t cover, cover_end;           // tokens that may follow; -1 for all
  int64_t excluded, excluded_end;     // and of those the ones that may not
  int64_t path, path_end;
  int64_t may_end, is_way;            // is_way: it spells what was typed, and nothing else
};

// A first token for each of `keys`, among the branches of a request; parents stand before their children.
struct FirstDraw {
  int64_t num_branches, num_samples, num_prompt, num_biases;
  const Branch* branches;
  const double *given, *rest;  // of each branch: log-probability of the tokens after head_id, and of those after token_id
  const int64_t* ids;     // those of the prompt first
  const float* logits;
  int64_t logits_stride;
  const float* bias;      // [vocabulary], -inf for what is never drawn
  const int64_t* bias_ids;
  const float* biases;
  int64_t end_id;
  int64_t end_ids[4];
  float temperature, top_p, penalty;
  int32_t top_k;
  int64_t must_differ;
  const int64_t* keys;    // of the samples' noise
  int64_t *branch_of, *token_ids;
  double* logprobs;
};

}  // extern "C"

namespace {

struct Norm {
  Buffer<float> weight, bias;
  void set(const float* w, const float* b, int64_t width) {
    weight = buffer<float>(width), bias = buffer<float>(width);
    std::memcpy(weight.get(), w, width * sizeof(float));
    std::memcpy(bias.get(), b, width * sizeof(float));
  }
  void apply(const float* x, float* y, int64_t width, float epsilon) const {
    Vec total{};
    for (int64_t k = 0; k < width; k += kLanes) total += load(x + k);
    const float mean = sum(total) / width;
    Vec squares{};
    for (int64_t k = 0; k < width; k += kLanes) {
      const Vec d = load(x + k) - mean;
      squares += d * d;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / width + epsilon);
    for (int64_t k = 0; k < width; k += kLanes)
      store(y + k, (load(x + k) - mean) * scale * load(weight.get() + k) + load(bias.get() + k));
  }
};

struct Block {
  Norm norm_1, norm_2;
  Linear mix, project, up, down;  // `mix` gives queries, keys and values
};

// ---- drawing --------------------------------------------------------------------------------------------------------

// SplitMix64's finalizer; generation/noise.py has the same function.
uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

double gumbel(uint64_t at_position, int32_t token_id) {
  const uint64_t bits = mixed(at_position + (token_id + 1) * kGolden) >> 11;
  const double uniform = std::min((static_cast<double>(bits) + 0.5) * 0x1p-53, 1 - 0x1p-53);
  return -std::log(-std::log(uniform));
}

struct Scored {
  float value;
  int32_t token_id;
  bool operator<(const Scored& other) const {  // "comes first": the higher value, then the lower id
    return value != other.value ? value > other.value : token_id < other.token_id;
  }
};

struct DrawBuffers {
  std::vector<float> values, peaks, ordered;
  std::vector<Scored> best;
};

constexpr int32_t kChunk = 64;
constexpr int kMaxCount = 127;  // of how often a token was drawn

// values [size] = logits + bias, in whole chunks (what is added at the end, and what is no number, is -inf).
void allow(const float* logits, const float* bias, int32_t count, int32_t size, float* values) {
  const Vec none = broadcast(-std::numeric_limits<float>::infinity());
  int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = load(logits + i) + load(bias + i);
    store(values + i, v == v ? v : none);
  }
  for (; i < count; ++i) {
    const float v = logits[i] + bias[i];
    values[i] = v == v ? v : none[0];
  }
  for (; i < size; ++i) values[i] = none[0];
}

// own.best = the k best of values[0..count), best first, in two stages: at least k values reach the k-th largest of the chunks' peaks, so only chunks whose
// peak does are looked at. `values` are own.values, or as many.
void select(const float* values, int32_t count, int32_t k, DrawBuffers& own) {
  own.best.clear();
  const int32_t chunks = static_cast<int32_t>(own.values.size()) / kChunk;
  float threshold = -std::numeric_limits<float>::infinity();
  for (int32_t c = 0; c < chunks; ++c) {
    Vec most = load(values + c * kChunk);
    for (int32_t j = kLanes; j < kChunk; j += kLanes) {
      const Vec v = load(values + c * kChunk + j);
      most = v > most ? v : most;
    }
    own.peaks[c] = largest(most);
  }
  if (k < chunks) {
    own.ordered = own.peaks;
    std::nth_element(own.ordered.begin(), own.ordered.begin() + (k - 1), own.ordered.end(), std::greater<float>());
    threshold = own.ordered[k - 1];
  }
  for (int32_t c = 0; c < chunks; ++c) {
    if (own.peaks[c] < threshold) continue;
    const int32_t end = std::min((c + 1) * kChunk, count);
    for (int32_t i = c * kChunk; i < end; ++i)
      if (values[i] >= threshold) own.best.push_back({values[i], i});
  }
  const size_t kept = std::min<size_t>(k, own.best.size());
  std::partial_sort(own.best.begin(), own.best.begin() + kept, own.best.end());
  own.best.resize(kept);
}

double log_sum_exp(const float* values, int32_t count) {
  Vec most = broadcast(-std::numeric_limits<float>::infinity());
  int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = load(values + i);
    most = v > most ? v : most;
  }
  float peak = largest(most);
  for (; i < count; ++i) peak = std::max(peak, values[i]);
  if (peak == -std::numeric_limits<float>::infinity()) return peak;
  double total = 0;
  for (i = 0; i + kChunk <= count; i += kChunk) {  // floats add up over a chunk only
    Vec part = exponential(load(values + i) - peak);
    for (int32_t j = kLanes; j < kChunk; j += kLanes) part += exponential(load(values + i + j) - peak);
    total += sum(part);
  }
  for (; i < count; ++i) total += std::exp(values[i] - peak);
  return peak + std::log(total);
}

bool is_finite(const float* values, int32_t count) {
  Vec zeros{};  // what is no finite number gives none here either
  int32_t i = 0;
  for (; i + kLanes <= count; i += kLanes) zeros += load(values + i) - load(values + i);
  float zero = sum(zeros);
  for (; i < count; ++i) zero += values[i] - values[i];
  return zero == 0;
}

// Takes the row's penalties off the tokens that it has seen; most of `seen` is zeros, eight of them looked at together.
void penalize(const Row& row, const uint8_t* seen, int32_t count, float* values) {
  auto one = [&](int32_t i) {
    if (!seen[i] || !std::isfinite(values[i])) return;
    values[i] = values[i] > 0 ? values[i] / row.penalty : values[i] * row.penalty;
    const int times = seen[i] & kMaxCount;
    if (times) values[i] -= times * row.frequency + row.presence;
  };
  int32_t i = 0;
  for (uint64_t eight; i + 8 <= count; i += 8) {
    std::memcpy(&eight, seen + i, sizeof eight);
    for (int32_t j = i; eight && j < i + 8; ++j) one(j);
  }
  for (; i < count; ++i) one(i);
}

// How many of the best ones top-p leaves: up to the one with which their share reaches it.
size_t nucleus(const std::vector<Scored>& best, float top_p) {
  if (!(top_p < 1.0f)) return best.size();
  double total = 0, before = 0;
  for (const Scored& scored : best) total += std::exp(scored.value - best[0].value);
  for (size_t i = 0; i < best.size(); ++i) {
    if (i && before >= top_p) return i;
    before += std::exp(best[i].value - best[0].value) / total;
  }
  return best.size();
}

// The token to stand at `position`: an exact draw among the first `kept`; the only one of a row without a draw.
int32_t chosen(const std::vector<Scored>& best, size_t kept, int64_t key, int64_t position) {
  if (kept == 1) return best[0].token_id;
  const uint64_t at_position = mixed(key + (position + 1) * kGolden);
  size_t chosen = 0;
  double best_score = -std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < kept; ++i) {
    const double score = best[i].value + gumbel(at_position, best[i].token_id);
    if (score > best_score) best_score = score, chosen = i;
  }
  return best[chosen].token_id;
}

// The token, or -1 if its logit is no finite number: nothing better was there.
int32_t proven(const float* logits, int32_t token_id) { return std::isfinite(logits[token_id]) ? token_id : -1; }

// The token that is given for this row, and its log-probability among all tokens.
void force_row(const Draw& draw, int64_t r, const float* logits, int32_t vocabulary) {
  Row& row = draw.rows[r];
  row.position += 1;
  const int32_t token_id = draw.forced[r * draw.window + row.position];
  row.token_id = token_id;
  draw.token_ids[r] = proven(logits, token_id);
  draw.logprobs[r] = row.wants_logprob ? static_cast<float>(logits[token_id] - log_sum_exp(logits, vocabulary)) : 0.0f;
}

void draw_row(const Draw& draw, int64_t r, int32_t vocabulary, DrawBuffers& own) {
  Row& row = draw.rows[r];
  const int64_t slot = r < draw.num_continuing ? r : draw.prompt_slots[r - draw.num_continuing];
  const float* logits = draw.logits + slot * draw.logits_stride;
  if (row.is_forced) return force_row(draw, r, logits, vocabulary);
  uint8_t* seen = draw.seen + r * vocabulary;
  float* values = own.values.data();
  allow(logits, draw.bias, vocabulary, static_cast<int32_t>(own.values.size()), values);
  if (row.has_bias)
    for (int32_t i = 0; i < vocabulary; ++i) values[i] += draw.row_bias[r * vocabulary + i];
  row.position += 1;
  if (row.position < row.end_from) {
    if (draw.end_id >= 0) values[draw.end_id] = -std::numeric_limits<float>::infinity();
    for (const int32_t end_id : row.end_ids)
      if (end_id >= 0) values[end_id] = -std::numeric_limits<float>::infinity();
  }
  const double normalizer = row.wants_logprob ? log_sum_exp(values, vocabulary) : 0;
  if (row.keeps_seen) penalize(row, seen, vocabulary, values);
  select(values, vocabulary, row.top_k, own);
  for (Scored& scored : own.best) scored.value /= row.temperature;
  const size_t kept = row.is_greedy ? 1 : nucleus(own.best, row.top_p);
  const int32_t token_id = chosen(own.best, kept, row.key, row.position);
  row.token_id = token_id;
  draw.token_ids[r] = proven(logits, token_id);
  if (row.keeps_seen && (seen[token_id] & kMaxCount) < kMaxCount) seen[token_id] += 1;
  const float own_bias = row.has_bias ? draw.row_bias[r * vocabulary + token_id] : 0.0f;
  draw.logprobs[r] =
      row.wants_logprob ? static_cast<float>(logits[token_id] + draw.bias[token_id] + own_bias - normalizer) : 0.0f;
}

// ---- drawing among branches -----------------------------------------------------------------------------------------

// What came of it; mirrored in native/branches.py. kUnsound: a logit is no number. kForbidden: biases leave nothing that spells what was typed.
// kExhausted: all that may come was excluded.
enum Outcome : int32_t { kNoMemory = 0, kDrawn = 1, kUnsound = 2, kForbidden = 3, kExhausted = 4 };

// generation/first_draw.py says what is drawn, and has the same in numpy.
class BranchTree {
 public:
  // `size` is that of a line: the vocabulary in whole chunks.
  void begin(const FirstDraw& ask, int32_t vocabulary, int32_t size) {
    ask_ = &ask, vocabulary_ = vocabulary, size_ = size;
    if (nodes_.size() < static_cast<size_t>(ask.num_branches)) nodes_.resize(ask.num_branches);
    for (int64_t b = 0; b < ask.num_branches; ++b) nodes_[b].line.resize(size), nodes_[b].taken.clear();
  }

  // What can be told of one branch alone; threads divide the branches.
  void weigh(int64_t b, DrawBuffers& own) {
    const FirstDraw& ask = *ask_;
    const Branch& branch = ask.branches[b];
    Node& node = nodes_[b];
    node.is_sound = is_finite(ask.logits + branch.slot * ask.logits_stride, vocabulary_);
    const bool is_all = branch.cover < 0;
    float* scores = is_all ? node.line.data() : own.values.data();
    allow_all(b, scores);
    bool is_asked = !is_all && branch.is_way;
    for (int64_t c = b + 1; c < ask.num_branches; ++c) is_asked |= ask.branches[c].head_parent == b;
    node.norm = is_asked ? log_sum_exp(scores, size_) : kUnknown;
    node.covered = 0;
    if (!is_all && branch.is_way) {
      cover(branch, scores, node);
      node.covered = log_sum_exp(node.line.data(), size_) - node.norm;
    }
    if (ask.penalty != 1.0f) {
      auto penalize = [&](int64_t begin, int64_t end) {  // of a token that comes twice once
        for (int64_t i = begin; i < end; ++i) {
          const float value = allowed(b, ask.ids[i]);
          scores[ask.ids[i]] = value > 0 ? value / ask.penalty : value * ask.penalty;
        }
      };
      penalize(0, ask.num_prompt), penalize(branch.path, branch.path_end);
    }
    if (ask.temperature != 1.0f)
      for (int32_t i = 0; i < size_; i += kLanes) store(scores + i, load(scores + i) / ask.temperature);
    for (int64_t c = b + 1; c < ask.num_branches; ++c)
      if (ask.branches[c].parent == b) nodes_[c].score_before = scores[ask.branches[c].token_id];
    if (!is_all) {
      node.score_norm = log_sum_exp(scores, size_);
      cover(branch, scores, node);
    }
    double removed = kNone;
    auto remove = [&](int64_t token_id) {
      float& score = node.line[token_id];
      removed = log_add_exp(removed, score), score = kNone;
    };
    for (int64_t i = branch.excluded; i < branch.excluded_end; ++i) remove(ask.ids[i]);
    for (int64_t c = b + 1; c < ask.num_branches; ++c)
      if (ask.branches[c].parent == b) remove(ask.branches[c].token_id);
    node.total = log_sum_exp(node.line.data(), size_), node.error = kRounding, node.kept = 0;
    if (is_all) node.score_norm = log_add_exp(node.total, removed);
  }

  // Fills in what was asked for; after all branches are weighed.
  Outcome draw(DrawBuffers& own) {
    const FirstDraw& ask = *ask_;
    for (int64_t b = 0; b < ask.num_branches; ++b)
      if (!nodes_[b].is_sound) return kUnsound;
    for (int64_t b = 0; b < ask.num_branches; ++b) reach(b);
    total_ = total();
    if (!std::isfinite(total_) && ask.num_biases) return kForbidden;
    for (int64_t b = ask.num_branches - 1; b >= 0; --b) settle(b);
    for (int64_t n = 0; n < ask.num_samples; ++n) {
      if (nodes_[0].total == kNone) give_back();
      if (nodes_[0].total == kNone) return kExhausted;
      go_down(n, own);
      if (ask.must_differ) take(ask.branch_of[n], ask.token_ids[n]);
    }
    return kDrawn;
  }

 private:
  struct Node {
    std::vector<float> line;  // scores at the request's temperature of what may come, -inf for the rest
    double total, score_norm;  // of the line, and of the scores of all tokens: logarithms of their sums
    double error;  // of the total, at most
    double norm, covered, reached;  // of the logits
    float score_before;  // of the branch's token_id where it parts from its parent
    std::vector<std::pair<int64_t, float>> taken;  // tokens that an earlier sample went on with, and their scores
    std::vector<Scored> best;
    size_t kept;  // of `best`; 0 before they are looked for
    bool is_sound;
  };
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  static constexpr double kRounding = 1e-7, kExact = 1e-5;  // relative errors: of a sum, and of what is left when most of it is taken away
  static constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

  static double log_add_exp(double a, double b) {
    const double most = std::max(a, b);
    return most == kNone ? most : most + std::log1p(std::exp(std::min(a, b) - most));
  }

  bool is_end(int64_t token_id) const {
    return token_id == ask_->end_id || std::find(std::begin(ask_->end_ids), std::end(ask_->end_ids), token_id) != std::end(ask_->end_ids);
  }

  // values [size]: the logits after a branch with biases and bans; `allowed` is one of them.
  void allow_all(int64_t b, float* values) const {
    const FirstDraw& ask = *ask_;
    allow(ask.logits + ask.branches[b].slot * ask.logits_stride, ask.bias, vocabulary_, size_, values);
    for (int64_t i = 0; i < ask.num_biases; ++i) values[ask.bias_ids[i]] += ask.biases[i];
    if (ask.branches[b].may_end) return;
    if (ask.end_id >= 0) values[ask.end_id] = kNone;
    for (const int64_t end_id : ask.end_ids)
      if (end_id >= 0) values[end_id] = kNone;
  }
  float allowed(int64_t b, int64_t token_id) const {
    const FirstDraw& ask = *ask_;
    if (!ask.branches[b].may_end && is_end(token_id)) return kNone;
    float value = ask.logits[ask.branches[b].slot * ask.logits_stride + token_id] + ask.bias[token_id];
    for (int64_t i = 0; i < ask.num_biases; ++i)
      if (ask.bias_ids[i] == token_id) value += ask.biases[i];
    return value;
  }

  // node.line = values of the tokens that may follow, -inf for the rest.
  void cover(const Branch& branch, const float* values, Node& node) const {
    std::fill(node.line.begin(), node.line.end(), kNone);
    for (int64_t i = branch.cover; i < branch.cover_end; ++i) node.line[ask_->ids[i]] = values[ask_->ids[i]];
  }

  // Log-probabilities from what was typed on.
  void reach(int64_t b) {
    const Branch& branch = ask_->branches[b];
    Node& node = nodes_[b];
    node.reached = 0;
    if (branch.head_parent < 0) return;
    const Node& before = nodes_[branch.head_parent];
    node.reached = before.reached + allowed(branch.head_parent, branch.head_id) - before.norm + ask_->given[b];
    node.covered += node.reached;
  }

  // Of all that spells what was typed, excluded or not.
  double total() const {
    double total = kNone;
    for (int64_t b = 0; b < ask_->num_branches; ++b)
      if (ask_->branches[b].is_way && !std::isnan(nodes_[b].covered)) total = log_add_exp(total, nodes_[b].covered);
    return total;
  }

  // After its children.
  void settle(int64_t b) {
    for (int64_t c = b + 1; c < ask_->num_branches; ++c) {
      const Branch& child = ask_->branches[c];
      if (child.parent != b) continue;
      const double mass = std::isfinite(nodes_[c].score_norm) ? nodes_[c].total - nodes_[c].score_norm : kNone;
      replace(nodes_[b], child.token_id, nodes_[c].score_before + static_cast<float>(ask_->rest[c] + mass));
    }
  }

  // Puts another score into a line and its total.
  void replace(Node& node, int64_t token_id, float score) {
    const float old = std::exchange(node.line[token_id], score);
    if (old == score) return;
    node.kept = 0;
    const double others = old == kNone ? 1 : -std::expm1(old - node.total);  // their share of the total
    node.error /= others;
    if (others > 0 && node.error < kExact) {
      node.total = log_add_exp(node.total + std::log(others), score);
    } else {
      node.total = log_sum_exp(node.line.data(), size_), node.error = kRounding;
    }
  }

  void go_down(int64_t n, DrawBuffers& own) {
    const FirstDraw& ask = *ask_;
    for (int64_t b = 0, next; b >= 0; b = next) {
      Node& node = nodes_[b];
      if (!node.kept) {
        select(node.line.data(), vocabulary_, ask.top_k, own);
        node.best = own.best, node.kept = nucleus(node.best, ask.top_p);
      }
      const int32_t token_id = chosen(node.best, node.kept, ask.keys[n], ask.branches[b].position);
      next = -1;
      for (int64_t c = b + 1; c < ask.num_branches; ++c)
        if (ask.branches[c].parent == b && ask.branches[c].token_id == token_id) next = c;
      if (next < 0) answer(n, b, token_id, own);
    }
  }

  void answer(int64_t n, int64_t b, int64_t token_id, DrawBuffers& own) {
    Node& node = nodes_[b];
    if (std::isnan(node.norm)) {
      allow_all(b, own.values.data());
      node.norm = log_sum_exp(own.values.data(), size_);
    }
    ask_->branch_of[n] = b, ask_->token_ids[n] = token_id;
    ask_->logprobs[n] = node.reached + allowed(b, token_id) - node.norm - total_;
  }

  // Nobody else goes on so.
  void take(int64_t b, int64_t token_id) {
    nodes_[b].taken.push_back({token_id, nodes_[b].line[token_id]});
    replace(nodes_[b], token_id, kNone);
    while ((b = ask_->branches[b].parent) >= 0) settle(b);
  }

  void give_back() {
    for (int64_t b = ask_->num_branches - 1; b >= 0; --b) {
      for (const auto& [token_id, score] : nodes_[b].taken) replace(nodes_[b], token_id, score);
      nodes_[b].taken.clear(), settle(b);
    }
  }

  const FirstDraw* ask_ = nullptr;
  int32_t vocabulary_ = 0, size_ = 0;
  double total_ = 0;
  std::vector<Node> nodes_;
};

}  // namespace

// ---- what passes gave ----------------------------------------------------------------------------------------------

// Keys, values and logits of tokens that were computed, by what stands before them: a candidate that is drawn anew begins as others did that are known. In
// sets of four, of which the oldest goes first. Memory is taken as it is needed; of large models nothing is kept.
class Memo {
 public:
  // `size` in bytes is that of keys and values of a token together.
  void open(int64_t size, int64_t vocabulary) {
    size_ = size, vocabulary_ = vocabulary;
    const int64_t entry = size + vocabulary * static_cast<int64_t>(sizeof(float));
    num_sets_ = std::bit_floor(static_cast<uint64_t>(kBytes / (entry * kWays)));
    if (num_sets_ * kWays < kLeast) num_sets_ = 0;
    entries_ = std::vector<Entry>(num_sets_ * kWays);
  }

  struct Entry {
    uint64_t beginning = 0;
    int64_t position = 0, stamp = 0;
    Buffer<char> cache;
    Buffer<float> logits;
  };

  // Null if it is not known.
  const Entry* find(uint64_t beginning, int64_t position) {
    if (!num_sets_) return nullptr;
    Entry* set = set_of(beginning);
    for (int way = 0; way < kWays; ++way)
      if (set[way].beginning == beginning && set[way].position == position) {
        set[way].stamp = ++clock_;
        return &set[way];
      }
    return nullptr;
  }

  void begin_pass() { start_ = clock_; }

  // A place to write to, which is to be given its beginning when all is written. Null if memory has run out, or all places are of this pass.
  Entry* put(uint64_t beginning) {
    if (!num_sets_) return nullptr;
    Entry* set = set_of(beginning);
    Entry* entry = std::min_element(set, set + kWays, [](const Entry& a, const Entry& b) { return a.stamp < b.stamp; });
    if (entry->stamp > start_) return nullptr;
    try {
      if (!entry->logits) entry->cache = buffer<char>(size_), entry->logits = buffer<float>(vocabulary_);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
    entry->beginning = 0, entry->stamp = ++clock_;
    return entry;
  }

  void forget() {
    for (Entry& entry : entries_) entry.beginning = 0, entry.stamp = 0;
  }

 private:
  static constexpr int64_t kBytes = 48 << 20;
  static constexpr int kWays = 4;
  static constexpr uint64_t kLeast = 256;  // of large models so few would be kept that none were found again
  Entry* set_of(uint64_t beginning) { return entries_.data() + (beginning & (num_sets_ - 1)) * kWays; }

  int64_t size_ = 0, vocabulary_ = 0, clock_ = 0, start_ = 0;
  uint64_t num_sets_ = 0;
  std::vector<Entry> entries_;
};

// ---- the model --------------------------------------------------------------------------------------------------------

class Model {
 public:
  Model(const Shape& shape, const float* const* tensors, Precision precision, int num_threads)
      : shape_(shape), team_(num_threads), draw_buffers_(num_threads) {
    const int64_t w = shape.width;
    auto next = [&] { return *tensors++; };
    tokens_ = next(), positions_ = next();
    const float* weight = next();
    norm_.set(weight, next(), w);
    blocks_ = std::vector<Block>(shape.layers);
    for (Block& block : blocks_) {
      auto norm = [&](Norm& into) { weight = next(), into.set(weight, next(), w); };
      auto linear = [&](Linear& into, int64_t in, int64_t out) {
        weight = next(), into.pack(precision, weight, next(), in, out, false, team_, arena_);
      };
      norm(block.norm_1), linear(block.mix, w, 3 * w), linear(block.project, w, w);
      norm(block.norm_2), linear(block.up, w, shape.inner), linear(block.down, shape.inner, w);
    }
    head_.pack(precision, tokens_, nullptr, w, shape.vocabulary, true, team_, arena_);
    lowers_ = lowers_activations(precision), keeps_floats_ = precision == kFloat;
    x_.precision = inner_.precision = precision;
    const int32_t chunks = (shape.vocabulary + kChunk - 1) / kChunk;
    for (DrawBuffers& own : draw_buffers_) {
      own.values.resize(chunks * kChunk), own.peaks.resize(chunks);
      own.ordered.reserve(chunks), own.best.reserve(shape.vocabulary);  // a draw takes no memory
    }
    scores_.resize(num_threads, std::vector<float>(shape.window + kLanes));
    memo_.open(2 * shape.layers * w * (keeps_floats_ ? sizeof(float) : sizeof(Bfloat)), shape.vocabulary);
  }

  // Throws std::bad_alloc before anything is computed.
  void forward(const Cache& cache, Pass& pass) {
    tokens_of_pass_.clear(), followers_.clear(), asked_.clear(), known_.clear(), kept_.clear(), memo_.begin_pass();
    places_.assign(std::bit_ceil(static_cast<uint64_t>(2 * pass.num_rows + 1)), -1);
    grown_.resize(pass.num_rows);
    for (int64_t r = 0; r < pass.num_rows; ++r) feed(pass.rows[r], r, pass.secret);
    for (int64_t i = 0, last = 0; i < pass.num_read; ++i) {
      const bool is_last = last < pass.num_last && pass.last[last] == i;
      const uint64_t beginning = is_last ? pass.beginnings[last++] : 0;
      const Token token{pass.token_ids[i], pass.positions[i], pass.slots[i], beginning, -1, beginning != 0};
      if (beginning && is_known(token)) continue;
      if (is_last) asked_.push_back(tokens_of_pass_.size());
      tokens_of_pass_.push_back(token);
    }
    pass.num_shared = followers_.size() + known_.size();
    const int64_t m = tokens_of_pass_.size();
    hidden_.reserve(m, shape_.width), x_.reserve(m, shape_.width);
    mixed_.reserve(m, 3 * shape_.width), inner_.reserve(m, shape_.inner);
    kept_.reserve(asked_.size());
    for (int64_t r = 0; r < pass.num_rows; ++r) pass.rows[r].beginning = grown_[r];  // nothing fails from here on
    for (const auto& [slot, entry] : known_) restore(cache, pass, slot, *entry);
    if (!m) return;
    for (const int64_t index : asked_) {
      const Token& token = tokens_of_pass_[index];
      if (!token.remembers) continue;
      if (Memo::Entry* entry = memo_.put(token.beginning)) kept_.push_back({index, entry});
    }
    auto job = [&](int index) { run(cache, pass, index); };
    Pace& pace = paces_[std::bit_width(static_cast<uint64_t>(m))];
    const auto start = std::chrono::steady_clock::now();
    is_together_ = pace.is_together();
    team_.run(job, is_together_);
    pace.took(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }

  void forget() { memo_.forget(); }

  void draw(const Draw& draw) {
    auto job = [&](int index) {
      const Share mine = share(draw.num_rows, index, team_.size());
      for (int64_t r = mine.begin; r < mine.end; ++r) draw_row(draw, r, shape_.vocabulary, draw_buffers_[index]);
    };
    team_.run(job, is_together_);  // as the pass before it
  }

  // Throws std::bad_alloc before anything is computed.
  void advance(const Cache& cache, Pass& pass, Draw draw, Advance& made) {
    const auto start = std::chrono::steady_clock::now();
    for (made.num_steps = made.num_shared = 0; made.num_steps < made.most;) {
      draw.token_ids = made.token_ids + made.num_steps * draw.num_rows;
      draw.logprobs = made.logprobs + made.num_steps * draw.num_rows;
      try {
        forward(cache, pass);
      } catch (const std::bad_alloc&) {
        if (!made.num_steps) throw;
        return;  // the next call will tell
      }
      this->draw(draw);
      made.num_steps += 1, made.num_shared += pass.num_shared;
      if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > made.seconds) return;
      for (int64_t r = 0; r < draw.num_rows; ++r)
        if (may_end(draw, r)) return;
    }
  }

  // Throws std::bad_alloc before anything is drawn.
  Outcome draw_first(const FirstDraw& ask) {
    tree_.begin(ask, shape_.vocabulary, static_cast<int32_t>(draw_buffers_[0].values.size()));
    auto job = [&](int index) {
      const Share mine = share(ask.num_branches, index, team_.size());
      for (int64_t b = mine.begin; b < mine.end; ++b) tree_.weigh(b, draw_buffers_[index]);
    };
    team_.run(job, is_together_ && ask.num_branches > 1);
    return tree_.draw(draw_buffers_[0]);
  }

  // One copy after the other; threads divide the heads.
  void copy(const Cache& cache, const Copy* copies, int64_t count) {
    int64_t positions = 0;
    for (int64_t i = 0; i < count; ++i) positions += copies[i].length * copies[i].num_targets;
    const int64_t num_heads = shape_.layers * shape_.heads, bytes_each = head_dim() * (keeps_floats_ ? sizeof(float) : sizeof(Bfloat));
    auto job = [&](int index) {
      const Share heads = share(num_heads, index, team_.size());
      for (int64_t item = heads.begin; item < heads.end; ++item)
        for (int64_t i = 0; i < count; ++i) copy_head(cache, item / shape_.heads, item % shape_.heads, copies[i], bytes_each);
    };
    const bool is_small = 2 * num_heads * positions * bytes_each < kSmallCopy;
    team_.run(job, is_together_ && !is_small);
  }

  int num_threads() const { return is_together_ ? team_.most() : 1; }

 private:
  struct Token {
    int64_t token_id, position, slot;
    uint64_t beginning;
    int64_t follower;  // the first of those that get what it gets, -1 for none
    bool remembers;
  };
  struct Follower {
    int64_t slot, leader, next;
  };

  // A row's token becomes one of the pass, follows one that is the same, or is known.
  void feed(const Row& row, int64_t slot, uint64_t secret) {
    uint64_t& beginning = grown_[slot];  // of the row with this token
    const uint64_t last = places_.size() - 1;
    uint64_t at = 0;
    beginning = row.beginning;
    if (beginning) {
      beginning += mixed(mixed(secret + (row.position + 1) * kGolden) + (row.token_id + 1) * kGolden);
      for (at = beginning & last; places_[at] >= 0; at = (at + 1) & last) {
        Token& token = tokens_of_pass_[places_[at]];
        if (token.beginning != beginning || token.position != row.position) continue;
        followers_.push_back({slot, token.slot, token.follower});
        token.follower = static_cast<int64_t>(followers_.size()) - 1;
        return;
      }
    }
    const Token token{row.token_id, row.position, slot, beginning, -1, beginning && row.remembers};
    if (token.remembers && is_known(token)) return;
    if (beginning) places_[at] = static_cast<int32_t>(tokens_of_pass_.size());
    asked_.push_back(tokens_of_pass_.size());
    tokens_of_pass_.push_back(token);
  }

  bool is_known(const Token& token) {
    const Memo::Entry* entry = memo_.find(token.beginning, token.position);
    if (entry) known_.push_back({token.slot, entry});
    return entry != nullptr;
  }

  // What an earlier pass gave goes where this one would have written it.
  void restore(const Cache& cache, const Pass& pass, int64_t slot, const Memo::Entry& entry) {
    const char* from = entry.cache.get();
    each_piece(cache, slot, entry.position, [&](char* piece, int64_t bytes) { std::memcpy(piece, from, bytes), from += bytes; });
    std::memcpy(pass.logits + slot * pass.logits_stride, entry.logits.get(), shape_.vocabulary * sizeof(float));
  }

  void keep(const Cache& cache, const Pass& pass, const Token& token, Memo::Entry& entry) {
    const float* logits = pass.logits + token.slot * pass.logits_stride;
    if (!is_finite(logits, shape_.vocabulary)) return;
    char* to = entry.cache.get();
    each_piece(cache, token.slot, token.position, [&](const char* piece, int64_t bytes) { std::memcpy(to, piece, bytes), to += bytes; });
    std::memcpy(entry.logits.get(), logits, shape_.vocabulary * sizeof(float));
    entry.beginning = token.beginning, entry.position = token.position;
  }

  // Keys and values of one token: `act` gets each head's of each layer.
  template <class Act>
  void each_piece(const Cache& cache, int64_t slot, int64_t position, Act act) {
    const int64_t bytes = head_dim() * (keeps_floats_ ? sizeof(float) : sizeof(Bfloat));
    for (int64_t layer = 0; layer < shape_.layers; ++layer)
      for (int64_t head = 0; head < shape_.heads; ++head)
        for (float* half : {cache.keys, cache.values})
          act(reinterpret_cast<char*>(half + place(cache, layer, slot, head)) + position * bytes, bytes);
  }

  // Whether the token that was drawn for a row ends it, or is none.
  static bool may_end(const Draw& draw, int64_t r) {
    const int32_t token_id = draw.token_ids[r], *ends = draw.rows[r].end_ids;
    return token_id < 0 || token_id == draw.end_id || std::find(ends, ends + 4, token_id) != ends + 4;
  }

  static constexpr int64_t kSmallCopy = 1 << 18;  // bytes that one thread copies sooner than it wakes another

  void copy_head(const Cache& cache, int64_t layer, int64_t head, const Copy& copy, int64_t bytes_each) {
    const int64_t source = place(cache, layer, copy.source, head);
    for (int64_t slot = copy.target; slot < copy.target + copy.num_targets; ++slot) {
      const int64_t target = place(cache, layer, slot, head);
      std::memmove(cache.keys + target, cache.keys + source, copy.length * bytes_each);
      std::memmove(cache.values + target, cache.values + source, copy.length * bytes_each);
    }
  }

  void run(const Cache& cache, const Pass& pass, int index) {
    const int64_t m = tokens_of_pass_.size(), w = shape_.width;
    const Share mine = share(m, index, team_.size());
    for (int64_t r = mine.begin; r < mine.end; ++r) {
      const Token& at = tokens_of_pass_[r];
      const float *token = tokens_ + at.token_id * w, *position = positions_ + at.position * w;
      for (int64_t k = 0; k < w; k += kLanes) store(hidden_.row(r) + k, load(token + k) + load(position + k));
    }
    auto add = [&](int64_t r, int64_t n, Vec v) {
      if (n < w) store(hidden_.row(r) + n, load(hidden_.row(r) + n) + v);
    };
    for (int64_t layer = 0; layer < shape_.layers; ++layer) {
      const Block& block = blocks_[layer];
      normalize(block.norm_1, mine);
      team_.barrier();
      block.mix.apply(x_, m, index, team_.size(), [&](int64_t r, int64_t n, Vec v) {
        if (n < 3 * w) store(mixed_.row(r) + n, v);
      });
      team_.barrier();
      keeps_floats_ ? write<float>(cache, layer, mine) : write<Bfloat>(cache, layer, mine);
      team_.barrier();  // tokens of one prompt look at each other
      const Share heads = share(m * shape_.heads, index, team_.size());
      for (int64_t item = heads.begin; item < heads.end; ++item) {
        const int64_t next = std::min(item + 1, heads.end - 1);
        float* scores = scores_[index].data();
        keeps_floats_ ? attend<float>(cache, layer, item, next, scores) : attend<Bfloat>(cache, layer, item, next, scores);
      }
      team_.barrier();
      lower(x_, mine);
      block.project.apply(x_, m, index, team_.size(), add);
      team_.barrier();
      normalize(block.norm_2, mine);
      team_.barrier();
      block.up.apply(x_, m, index, team_.size(), [&](int64_t r, int64_t n, Vec v) {
        if (n < shape_.inner) store(inner_.row(r) + n, gelu(v));
      });
      team_.barrier();
      lower(inner_, mine);
      block.down.apply(inner_, m, index, team_.size(), add);
      team_.barrier();
    }
    const int64_t num_asked = asked_.size();
    auto token_asked = [&](int64_t i) { return asked_[i]; };
    const Share asked = share(num_asked, index, team_.size());
    for (int64_t i = asked.begin; i < asked.end; ++i) {
      norm_.apply(hidden_.row(token_asked(i)), x_.row(i), w, shape_.epsilon);
      if (lowers_) x_.lower(i);
    }
    team_.barrier();
    head_.apply(x_, num_asked, index, team_.size(), [&](int64_t i, int64_t n, Vec v) {
      store(pass.logits + tokens_of_pass_[token_asked(i)].slot * pass.logits_stride + n, v);
    });
    if (followers_.empty() && kept_.empty()) return;
    team_.barrier();
    const Share keeps = share(kept_.size(), index, team_.size());
    for (int64_t i = keeps.begin; i < keeps.end; ++i) keep(cache, pass, tokens_of_pass_[kept_[i].first], *kept_[i].second);
    const Share copies = share(followers_.size(), index, team_.size());
    for (int64_t i = copies.begin; i < copies.end; ++i)
      std::memcpy(pass.logits + followers_[i].slot * pass.logits_stride, pass.logits + followers_[i].leader * pass.logits_stride,
                  shape_.vocabulary * sizeof(float));
  }

  void normalize(const Norm& norm, Share rows) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      norm.apply(hidden_.row(r), x_.row(r), shape_.width, shape_.epsilon);
      if (lowers_) x_.lower(r);
    }
  }

  void lower(Activations& x, Share rows) {
    if (!lowers_) return;
    for (int64_t r = rows.begin; r < rows.end; ++r) x.lower(r);
    team_.barrier();
  }

  int64_t head_dim() const { return shape_.width / shape_.heads; }
  // Offset of a [window, head_dim] in floats.
  int64_t place(const Cache& cache, int64_t layer, int64_t slot, int64_t head) const {
    return ((layer * cache.slots + slot) * shape_.heads + head) * shape_.window * head_dim();
  }

  template <class Kept>
  void write(const Cache& cache, int64_t layer, Share rows) {
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      const Token& token = tokens_of_pass_[r];
      write_in<Kept>(cache, layer, token.slot, token.position, mixed_.row(r) + shape_.width);
      for (int64_t f = token.follower; f >= 0; f = followers_[f].next)
        write_in<Kept>(cache, layer, followers_[f].slot, token.position, mixed_.row(r) + shape_.width);
    }
  }

  // `keys_and_values` are those of all heads, the keys first.
  template <class Kept>
  void write_in(const Cache& cache, int64_t layer, int64_t slot, int64_t position, const float* keys_and_values) {
    const int64_t d = head_dim();
    for (int64_t head = 0; head < shape_.heads; ++head) {
      const int64_t at = place(cache, layer, slot, head);
      Kept* keys = reinterpret_cast<Kept*>(cache.keys + at) + position * d;
      Kept* values = reinterpret_cast<Kept*>(cache.values + at) + position * d;
      const float *key = keys_and_values + head * d, *value = key + shape_.width;
      for (int64_t k = 0; k < d; k += kLanes) store(keys + k, load(key + k)), store(values + k, load(value + k));
    }
  }

  // `item` counts the heads of all tokens. Keys and values of the `next` one are fetched meanwhile: each is a short piece of memory of its own,
  // over before the processor would have begun to fetch ahead.
  template <class Kept>
  void attend(const Cache& cache, int64_t layer, int64_t item, int64_t next, float* scores) {
    const int64_t d = head_dim(), r = item / shape_.heads, head = item % shape_.heads;
    const int64_t at = place(cache, layer, tokens_of_pass_[r].slot, head), count = tokens_of_pass_[r].position + 1;
    const int64_t at_next = place(cache, layer, tokens_of_pass_[next / shape_.heads].slot, next % shape_.heads);
    const Kept* keys = reinterpret_cast<const Kept*>(cache.keys + at);
    const Kept* values = reinterpret_cast<const Kept*>(cache.values + at);
    const int64_t ahead = (at_next - at) * sizeof(float);
    const float* query = mixed_.row(r) + head * d;
    float* out = x_.row(r) + head * d;
    switch (d / kLanes) {
      case 2: return attend_head<2>(query, keys, values, count, ahead, scores, out);
      case 4: return attend_head<4>(query, keys, values, count, ahead, scores, out);
      case 8: return attend_head<8>(query, keys, values, count, ahead, scores, out);
    }
    for (int64_t k = 0; k < d; k += kLanes) store(out + k, Vec{});  // other widths: vector by vector
    attend_any(query, keys, values, count, scores, out);
  }

  template <int N, class Kept>
  void attend_head(const float* query, const Kept* keys, const Kept* values, int64_t count, int64_t ahead, float* scores, float* out) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(N * kLanes));
    Vec q[N], total[N] = {};
    for (int i = 0; i < N; ++i) q[i] = load(query + i * kLanes) * scale;
    for (int64_t j = 0; j < count; ++j) {
      fetch<N>(keys + j * N * kLanes, ahead);
      Vec product = q[0] * load(keys + j * N * kLanes);
      for (int i = 1; i < N; ++i) product += q[i] * load(keys + j * N * kLanes + i * kLanes);
      scores[j] = sum(product);
    }
    const float weight = softmax(scores, count);
    for (int64_t j = 0; j < count; ++j) {
      fetch<N>(values + j * N * kLanes, ahead);
      for (int i = 0; i < N; ++i) total[i] += scores[j] * load(values + j * N * kLanes + i * kLanes);
    }
    for (int i = 0; i < N; ++i) store(out + i * kLanes, total[i] / weight);
  }

  template <int N, class Kept>
  static void fetch(const Kept* p, int64_t ahead) {
    constexpr int64_t bytes = N * kLanes * sizeof(Kept);
    for (int64_t line = 0; line < bytes; line += 64) prefetch(reinterpret_cast<const char*>(p) + ahead + line);
  }

  template <class Kept>
  void attend_any(const float* query, const Kept* keys, const Kept* values, int64_t count, float* scores, float* out) {
    const int64_t d = head_dim();
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    for (int64_t j = 0; j < count; ++j) {
      Vec product{};
      for (int64_t i = 0; i < d; i += kLanes) product += load(query + i) * scale * load(keys + j * d + i);
      scores[j] = sum(product);
    }
    const float weight = softmax(scores, count);
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = 0; i < d; i += kLanes) store(out + i, load(out + i) + scores[j] / weight * load(values + j * d + i));
  }

  // Replaces scores[0..count) by e^(score - highest) and returns their sum.
  static float softmax(float* scores, int64_t count) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (int64_t j = count; j % kLanes; ++j) scores[j] = -infinity;  // up to whole vectors; the buffer is that long
    Vec most = broadcast(-infinity), total{};
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec v = load(scores + j);
      most = v > most ? v : most;
    }
    const float peak = largest(most);
    for (int64_t j = 0; j < count; j += kLanes) {
      const Vec v = load(scores + j);
      const Vec e = v == -infinity ? Vec{} : exponential(v - peak);
      store(scores + j, e);
      total += e;
    }
    return sum(total);
  }

  const Shape shape_;
  Team team_;
  Pace paces_[65];  // by the bits of the number of tokens
  bool is_together_ = false;  // of the last pass
  std::vector<Token> tokens_of_pass_;  // those of rows first
  std::vector<Follower> followers_;
  std::vector<int32_t> places_;  // tokens of the pass by their beginning, -1 for none; at most half full
  std::vector<uint64_t> grown_;  // the rows' beginnings with the tokens of this pass
  std::vector<int64_t> asked_;  // tokens of the pass whose logits are wanted
  std::vector<std::pair<int64_t, const Memo::Entry*>> known_;  // slots, and what they get of earlier passes
  std::vector<std::pair<int64_t, Memo::Entry*>> kept_;  // tokens of the pass, and where what they give is kept for later ones
  const float *tokens_, *positions_;
  Arena arena_;
  Norm norm_;
  std::vector<Block> blocks_;
  Linear head_;
  bool lowers_ = false, keeps_floats_ = true;
  Activations hidden_, x_, mixed_, inner_;
  std::vector<std::vector<float>> scores_;
  std::vector<DrawBuffers> draw_buffers_;
  BranchTree tree_;
  Memo memo_;
};

extern "C" {

// Bits: 1 f32, 2 bf16, 4 int8.
int32_t promptgen_precisions() {
#if defined(__AVX512VNNI__)
  return 7;
#else
  return 3;
#endif
}

// `tensors` in the order of native/model.py; the first two (embeddings) must outlive the model, the others are copied. Null if memory or
// threads run out.
Model* promptgen_open(const Shape* shape, const float* const* tensors, int32_t precision, int32_t num_threads) {
  try {
    return new Model(*shape, tensors, static_cast<Precision>(precision), num_threads);
  } catch (const std::exception&) {
    return nullptr;
  }
}
// 0 if there is no memory for the pass: nothing was computed then.
int32_t promptgen_forward(Model* model, const Cache* cache, Pass* pass) {
  try {
    model->forward(*cache, *pass);
    return 1;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}
void promptgen_forget(Model* model) { model->forget(); }
int32_t promptgen_advance(Model* model, const Cache* cache, Pass* pass, const Draw* draw, Advance* made) {
  try {
    model->advance(*cache, *pass, *draw, *made);
    return 1;
  } catch (const std::bad_alloc&) {
    return 0;
  }
}
void promptgen_draw(Model* model, const Draw* draw) { model->draw(*draw); }
int32_t promptgen_draw_first(Model* model, const FirstDraw* ask) {
  try {
    return model->draw_first(*ask);
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  }
}
void promptgen_copy(Model* model, const Cache* cache, const Copy* copies, int64_t count) { model->copy(*cache, copies, count); }
// How many threads the last pass took.
int32_t promptgen_threads(const Model* model) { return model->num_threads(); }
void promptgen_close(Model* model) { delete model; }

}  // extern "C"

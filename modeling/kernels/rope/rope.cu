// Rope with the assembly of queries and keys in CUDA C++, the equal of kernel.py, against PyTorch's stable ABI: one
// binary for every PyTorch from 2.11 on, and one that loads where PyTorch has no CUDA. Build it with build_cuda.py.
//
// bf16, interleaved pairs, N and R multiples of 16, rows 16-byte aligned: published shapes. A block takes one position of
// all heads, a thread 16 bytes at a time.

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>

// Weak: a PyTorch without CUDA does not have it, and the library is to load all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace {

using torch::stable::Tensor;
constexpr int kThreads = 256;
constexpr int kWide = 8;

// Strides of batch, head and position, in elements.
struct Strides {
  int64_t b, h, s;
  __host__ __device__ int64_t at(int64_t batch, int64_t head, int64_t position) const {
    return batch * b + head * h + position * s;
  }
};

union Eight {
  uint4 bits;
  __nv_bfloat162 pairs[4];
  __nv_bfloat16 each[8];
};

union Four {
  uint2 bits;
  __nv_bfloat16 each[4];
};

__device__ void load_table(float* table, const __nv_bfloat16* cosine, const __nv_bfloat16* sine, int rotated) {
  const int half = rotated / 2;
  for (int i = threadIdx.x; i < half; i += kThreads) {
    table[i] = __bfloat162float(cosine[i]);
    table[half + i] = __bfloat162float(sine[i]);
  }
  __syncthreads();
}

// Turn the four pairs at columns j to j + 7 and write them by halves.
__device__ void rotate(const __nv_bfloat16* from, __nv_bfloat16* to, int j, int rotated, const float* table) {
  Eight in;
  in.bits = *reinterpret_cast<const uint4*>(from + j);
  Four first, second;
  const int half = rotated / 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float x = __low2float(in.pairs[i]), y = __high2float(in.pairs[i]);
    const float c = table[j / 2 + i], s = table[half + j / 2 + i];
    first.each[i] = __float2bfloat16(x * c - y * s);
    second.each[i] = __float2bfloat16(y * c + x * s);
  }
  *reinterpret_cast<uint2*>(to + j / 2) = first.bits;
  *reinterpret_cast<uint2*>(to + half + j / 2) = second.bits;
}

__global__ void __launch_bounds__(kThreads) forward_kernel(
    const __nv_bfloat16* q, const __nv_bfloat16* k_nope, const __nv_bfloat16* k_rope, const __nv_bfloat16* cosine,
    const __nv_bfloat16* sine, __nv_bfloat16* q_out, __nv_bfloat16* k_out, int positions, int q_heads, int k_heads,
    int nope, int rotated, Strides q_at, Strides nope_at, Strides rope_at, Strides table_at) {
  extern __shared__ float table[];
  const int64_t token = blockIdx.x, b = token / positions, s = token % positions;
  load_table(table, cosine + table_at.at(b, 0, s), sine + table_at.at(b, 0, s), rotated);
  const int columns = nope + rotated, chunks = columns / kWide;
  for (int i = threadIdx.x; i < (q_heads + k_heads) * chunks; i += kThreads) {
    const int head = i / chunks, column = (i % chunks) * kWide;
    const bool key = head >= q_heads;
    const int k_head = head - q_heads;
    __nv_bfloat16* to = key ? k_out + (token * k_heads + k_head) * columns : q_out + (token * q_heads + head) * columns;
    if (column < nope) {
      const __nv_bfloat16* from = key ? k_nope + nope_at.at(b, k_head, s) : q + q_at.at(b, head, s);
      *reinterpret_cast<uint4*>(to + column) = *reinterpret_cast<const uint4*>(from + column);
    } else {
      const __nv_bfloat16* from = key ? k_rope + rope_at.at(b, 0, s) : q + q_at.at(b, head, s) + nope;
      rotate(from, to + nope, column - nope, rotated, table);
    }
  }
}

// Turn gradients of four pairs, given by halves, back to where the pairs came from.
__device__ void turn_back(const float* first, const float* second, __nv_bfloat16* to, int j, int half, const float* table) {
  Eight out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float c = table[j / 2 + i], s = table[half + j / 2 + i];
    out.pairs[i] = __floats2bfloat162_rn(first[i] * c + second[i] * s, second[i] * c - first[i] * s);
  }
  *reinterpret_cast<uint4*>(to + j) = out.bits;
}

__device__ void load_halves(const __nv_bfloat16* from, int j, int half, float* first, float* second) {
  Four one, other;
  one.bits = *reinterpret_cast<const uint2*>(from + j / 2);
  other.bits = *reinterpret_cast<const uint2*>(from + half + j / 2);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    first[i] += __bfloat162float(one.each[i]);
    second[i] += __bfloat162float(other.each[i]);
  }
}

__global__ void __launch_bounds__(kThreads) backward_kernel(
    const __nv_bfloat16* grad_q, const __nv_bfloat16* grad_k, const __nv_bfloat16* cosine, const __nv_bfloat16* sine,
    __nv_bfloat16* q, __nv_bfloat16* k_nope, __nv_bfloat16* k_rope, int positions, int q_heads, int k_heads, int nope,
    int rotated, Strides q_at, Strides k_at, Strides table_at) {
  extern __shared__ float table[];
  float* sums = table + rotated;
  const int64_t token = blockIdx.x, b = token / positions, s = token % positions;
  load_table(table, cosine + table_at.at(b, 0, s), sine + table_at.at(b, 0, s), rotated);
  const int columns = nope + rotated, half = rotated / 2;
  for (int i = threadIdx.x; i < q_heads * (columns / kWide); i += kThreads) {
    const int head = i / (columns / kWide), column = (i % (columns / kWide)) * kWide;
    const __nv_bfloat16* from = grad_q + q_at.at(b, head, s);
    __nv_bfloat16* to = q + (token * q_heads + head) * columns;
    if (column < nope) {
      *reinterpret_cast<uint4*>(to + column) = *reinterpret_cast<const uint4*>(from + column);
    } else {
      float first[4] = {}, second[4] = {};
      load_halves(from + nope, column - nope, half, first, second);
      turn_back(first, second, to + nope, column - nope, half, table);
    }
  }
  for (int i = threadIdx.x; i < k_heads * (nope / kWide); i += kThreads) {
    const int head = i / (nope / kWide), column = (i % (nope / kWide)) * kWide;
    *reinterpret_cast<uint4*>(k_nope + (token * k_heads + head) * nope + column) =
        *reinterpret_cast<const uint4*>(grad_k + k_at.at(b, head, s) + column);
  }
  // The shared key: each thread adds up every `lanes`-th head of eight columns, then one thread for each eight columns
  // adds up the threads' sums, always in the same order.
  const int chunks = rotated / kWide, lanes = kThreads / chunks;
  const int chunk = threadIdx.x % chunks, lane = threadIdx.x / chunks;
  if (lane < lanes) {
    float first[4] = {}, second[4] = {};
    for (int head = lane; head < k_heads; head += lanes)
      load_halves(grad_k + k_at.at(b, head, s) + nope, chunk * kWide, half, first, second);
    for (int i = 0; i < 4; ++i) {
      sums[(lane * chunks + chunk) * kWide + i] = first[i];
      sums[(lane * chunks + chunk) * kWide + 4 + i] = second[i];
    }
  }
  __syncthreads();
  if (threadIdx.x < chunks) {
    float first[4] = {}, second[4] = {};
    for (int other = 0; other < lanes; ++other)
      for (int i = 0; i < 4; ++i) {
        first[i] += sums[(other * chunks + threadIdx.x) * kWide + i];
        second[i] += sums[(other * chunks + threadIdx.x) * kWide + 4 + i];
      }
    turn_back(first, second, k_rope + token * rotated, threadIdx.x * kWide, half, table);
  }
}

const __nv_bfloat16* read(const Tensor& x) { return static_cast<const __nv_bfloat16*>(x.data_ptr()); }
__nv_bfloat16* write(const Tensor& x) { return static_cast<__nv_bfloat16*>(x.data_ptr()); }

Strides strides_of(const Tensor& x) {
  // Where there is one entry for all, it is read for all.
  return {x.size(0) == 1 ? 0 : x.stride(0), x.size(1) == 1 ? 0 : x.stride(1), x.stride(2)};
}

Strides strides_of_table(const Tensor& x) { return {x.size(0) == 1 ? 0 : x.stride(0), 0, x.stride(1)}; }

void check(const Tensor& x, int64_t dims, const char* name) {
  STD_TORCH_CHECK(x.is_cuda(), name, " must be on a CUDA device");
  STD_TORCH_CHECK(x.scalar_type() == torch::headeronly::ScalarType::BFloat16, name, " must be bf16");
  STD_TORCH_CHECK(x.dim() == dims, name, " must have ", dims, " dimensions, not ", x.dim());
  STD_TORCH_CHECK(x.size(-1) == 0 || x.stride(-1) == 1, name, " must have dense rows");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0, name, " must be 16-byte aligned");
  for (int64_t d = 0; d + 1 < dims; ++d)
    STD_TORCH_CHECK(x.size(d) == 1 || x.stride(d) % kWide == 0, name, " must have strides that are multiples of 8");
}

void check_columns(int64_t nope, int64_t rotated) {
  STD_TORCH_CHECK(nope % 16 == 0 && rotated % 16 == 0 && rotated > 0 && rotated <= kThreads,
                  "N and R must be multiples of 16, R at most 256; they are ", nope, " and ", rotated);
}

cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch() {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "rope: ", cudaGetErrorString(error));
}

// q (B, H, S, N + R), k_nope (B, H, S, N) or (B, 1, S, 0), k_rope (B, 1, S, R), tables (B or 1, S, R); outputs lie as
// (B, S, H, N + R) and (B, S, H or 1, N + R).
void forward(Tensor& q_out, Tensor& k_out, const Tensor& q, const Tensor& k_nope, const Tensor& k_rope,
             const Tensor& cosine, const Tensor& sine) {
  check(q, 4, "q"), check(k_nope, 4, "k_nope"), check(k_rope, 4, "k_rope");
  check(cosine, 3, "cos"), check(sine, 3, "sin"), check(q_out, 4, "q_out"), check(k_out, 4, "k_out");
  const int64_t nope = k_nope.size(3), rotated = k_rope.size(3);
  check_columns(nope, rotated);
  STD_TORCH_CHECK(q.size(3) == nope + rotated, "q must have N + R columns");
  STD_TORCH_CHECK(q_out.is_contiguous() && k_out.is_contiguous(), "outputs must be contiguous");
  if (q.size(0) * q.size(2) == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(q.get_device_index());
  forward_kernel<<<q.size(0) * q.size(2), kThreads, rotated * sizeof(float), current_stream(q)>>>(
      read(q), read(k_nope), read(k_rope), read(cosine), read(sine), write(q_out), write(k_out), q.size(2), q.size(1),
      k_nope.size(1), nope, rotated, strides_of(q), strides_of(k_nope), strides_of(k_rope), strides_of_table(cosine));
  check_launch();
}

// The gradients as they arrive at forward's outputs, (B, H, S, N + R); outputs as forward's inputs, lying as (B, S, H, :).
void backward(Tensor& q, Tensor& k_nope, Tensor& k_rope, const Tensor& grad_q, const Tensor& grad_k,
              const Tensor& cosine, const Tensor& sine) {
  check(grad_q, 4, "grad_q"), check(grad_k, 4, "grad_k"), check(cosine, 3, "cos"), check(sine, 3, "sin");
  check(q, 4, "q"), check(k_nope, 4, "k_nope"), check(k_rope, 4, "k_rope");
  const int64_t rotated = k_rope.size(3), nope = grad_q.size(3) - rotated;
  check_columns(nope, rotated);
  STD_TORCH_CHECK(q.is_contiguous() && k_nope.is_contiguous() && k_rope.is_contiguous(), "outputs must be contiguous");
  if (grad_q.size(0) * grad_q.size(2) == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(grad_q.get_device_index());
  const int64_t shared = (rotated + kThreads * kWide) * sizeof(float);
  backward_kernel<<<grad_q.size(0) * grad_q.size(2), kThreads, shared, current_stream(grad_q)>>>(
      read(grad_q), read(grad_k), read(cosine), read(sine), write(q), write(k_nope), write(k_rope), grad_q.size(2),
      grad_q.size(1), grad_k.size(1), nope, rotated, strides_of(grad_q), strides_of(grad_k), strides_of_table(cosine));
  check_launch();
}

}  // namespace

STABLE_TORCH_LIBRARY(seeklet_kernels_cuda, ops) {
  ops.def(
      "rope_forward(Tensor(a!) q_out, Tensor(b!) k_out, Tensor q, Tensor k_nope, Tensor k_rope, Tensor cos, Tensor sin)"
      " -> ()");
  ops.def(
      "rope_backward(Tensor(a!) q, Tensor(b!) k_nope, Tensor(c!) k_rope, Tensor grad_q, Tensor grad_k, Tensor cos,"
      " Tensor sin) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(seeklet_kernels_cuda, CUDA, ops) {
  ops.impl("rope_forward", TORCH_BOX(&forward));
  ops.impl("rope_backward", TORCH_BOX(&backward));
}

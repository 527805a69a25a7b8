// What tch does not give: custom autograd functions called back in Rust, backward with given gradients,
// gradient-ready hooks, fused AdamW, flash attention with its log-sum-exp, generator state, streams, events, page-locked
// memory, copies that are queued, and memory statistics, those of the host too.
//
// Rules. No exception leaves an `extern "C"` function: each returns null, or a message that the caller frees with
// `mp_free`. Tensors cross as pointers to heap-allocated `at::Tensor`; a null pointer is an undefined tensor. Only
// libtorch's device-generic interface is used, so that one binary serves machines with and without CUDA.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_backward.h>
#include <c10/core/AutogradState.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

extern "C" {
// Implemented in Rust. Each takes ownership of what its arguments say, and never unwinds.
char *mp_rust_backward(void *context, at::Tensor **gradients, size_t count, at::Tensor **results, size_t inputs);
char *mp_rust_ready(void *context);
void mp_rust_drop_backward(void *context);
void mp_rust_drop_ready(void *context);
}

namespace {

char *copy_message(const char *message) {
  char *copy = static_cast<char *>(std::malloc(std::strlen(message) + 1));
  if (copy) std::strcpy(copy, message);
  return copy;
}

// Runs `body`; an exception becomes its message.
template <typename Body> char *guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error &error) {
    return copy_message(error.what_without_backtrace());
  } catch (const std::exception &error) {
    return copy_message(error.what());
  } catch (...) {
    return copy_message("an exception of unknown type in libtorch");
  }
}

void raise(char *message) {
  if (!message) return;
  std::string text(message);
  std::free(message);
  throw std::runtime_error(text);
}

at::Tensor take(at::Tensor *pointer) {
  if (!pointer) return at::Tensor();
  std::unique_ptr<at::Tensor> owned(pointer);
  return std::move(*owned);
}

std::vector<at::Tensor> list(at::Tensor *const *tensors, size_t count) {
  std::vector<at::Tensor> result;
  result.reserve(count);
  for (size_t i = 0; i < count; ++i) result.push_back(tensors[i] ? *tensors[i] : at::Tensor());
  return result;
}

// A node of the autograd graph whose backward is a Rust closure, which the node owns.
struct RustNode : public torch::autograd::Node {
  std::atomic<void *> context;
  explicit RustNode(void *context) : context(context) {}
  ~RustNode() override { drop(); }

  void drop() {
    if (void *owned = context.exchange(nullptr)) mp_rust_drop_backward(owned);
  }

  std::string name() const override { return "RustNode"; }

  // The engine calls this when the graph will not be walked again.
  void release_variables() override {
    std::lock_guard<std::mutex> lock(mutex_);
    drop();
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list &&gradients) override {
    // Two threads may walk one retained graph; the closure has one owner at a time.
    std::lock_guard<std::mutex> lock(mutex_);
    void *held = context.load();
    TORCH_CHECK(held, "backward through a custom function a second time: its saved tensors are gone");
    std::vector<at::Tensor *> arguments(gradients.size(), nullptr);
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i].defined()) arguments[i] = new at::Tensor(std::move(gradients[i]));
    }
    std::vector<at::Tensor *> results(num_outputs(), nullptr);
    raise(mp_rust_backward(held, arguments.data(), arguments.size(), results.data(), results.size()));
    torch::autograd::variable_list out;
    out.reserve(results.size());
    for (at::Tensor *result : results) out.push_back(take(result));
    return out;
  }
};

struct ReadyHook : public torch::autograd::PostAccumulateGradHook {
  void *context;
  explicit ReadyHook(void *context) : context(context) {}
  ~ReadyHook() override { mp_rust_drop_ready(context); }
  void operator()(const at::Tensor &) override { raise(mp_rust_ready(context)); }
};

// The host's allocator with a count of the bytes that tensors asked it for. Each block begins with its length, so that
// whoever frees it, with nothing but its address, takes off what was added; memory that others own is not counted.
class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator *inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    void *block = nullptr;
    try {
      block = inner_->raw_allocate(bytes <= SIZE_MAX - HEAD ? bytes + HEAD : bytes);
    } catch (const c10::Error &) {
      // In libtorch's words, with the bytes that the tensor has.
      TORCH_CHECK(false, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ", bytes, " bytes.");
    }
    std::memcpy(block, &bytes, sizeof bytes);
    const size_t held = current_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    size_t peak = peak_.load(std::memory_order_relaxed);
    while (held > peak && !peak_.compare_exchange_weak(peak, held, std::memory_order_relaxed)) {
    }
    void *data = static_cast<char *>(block) + HEAD;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void *to, const void *from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  void statistics(int64_t *current, int64_t *peak) const {
    *current = static_cast<int64_t>(current_.load(std::memory_order_relaxed));
    *peak = static_cast<int64_t>(peak_.load(std::memory_order_relaxed));
  }
  void reset_peak() { peak_.store(current_.load(std::memory_order_relaxed), std::memory_order_relaxed); }

 private:
  // As much as keeps the data aligned as libtorch has it.
  static constexpr size_t HEAD = c10::gAlignment;
  static_assert(HEAD >= sizeof(size_t));

  static void release(void *data);

  c10::Allocator *inner_;
  std::atomic<size_t> current_{0};
  std::atomic<size_t> peak_{0};
};

// In force before `main`: what was registered when a block is made must be so when it is freed, for oneDNN's memory is freed
// by whichever allocator is registered then. Never destroyed: tensors of other statics may be freed after it.
CountingAllocator *const HOST = [] {
  auto *counting = new CountingAllocator(c10::GetCPUAllocator());
  c10::SetCPUAllocator(counting);
  return counting;
}();

void CountingAllocator::release(void *data) {
  if (!data) return;
  void *block = static_cast<char *>(data) - HEAD;
  size_t bytes = 0;
  std::memcpy(&bytes, block, sizeof bytes);
  HOST->current_.fetch_sub(bytes, std::memory_order_relaxed);
  HOST->inner_->raw_deallocate(block);
}

c10::DeviceType accelerator() {
  auto device = at::accelerator::getAccelerator(/*checked=*/false);
  TORCH_CHECK(device.has_value(), "no accelerator: streams, events and memory statistics exist only on one");
  // Its allocator has no figures before that, and its first tensor may be made later.
  at::globalContext().lazyInitDevice(*device);
  return *device;
}

c10::Stream stream_of(int device, int64_t id) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(accelerator(), static_cast<c10::DeviceIndex>(device)), id);
}

// Keeps a backward on the thread that asks for it. libtorch would run a device's part on one thread for each device, which
// ranks that are threads of one process share: a collective in one rank's backward would then keep the peers' from running.
class OwnThread {
 public:
  OwnThread() : before_(c10::AutogradState::get_tls_state().get_multithreading_enabled()) { set(false); }
  ~OwnThread() { set(before_); }
  OwnThread(const OwnThread &) = delete;
  OwnThread &operator=(const OwnThread &) = delete;

 private:
  static void set(bool enabled) { c10::AutogradState::get_tls_state().set_multithreading_enabled(enabled); }
  bool before_;
};

}  // namespace

extern "C" {

void mp_free(char *message) { std::free(message); }

// Makes `outputs` (computed without gradients) results of a function of `inputs` whose backward is `context`.
// Takes ownership of `context` in every case.
char *mp_attach(at::Tensor *const *inputs, size_t input_count, at::Tensor *const *outputs, size_t output_count,
                void *context) {
  std::shared_ptr<RustNode> node(new RustNode(context), torch::autograd::deleteNode);
  return guarded([&] {
    auto sources = list(inputs, input_count);
    if (!at::GradMode::is_enabled() || !torch::autograd::any_variable_requires_grad(sources)) return;
    node->set_next_edges(torch::autograd::collect_next_edges(sources));
    for (size_t i = 0; i < output_count; ++i) torch::autograd::set_history(*outputs[i], node);
  });
}

// `gradients[i]` may be null for a scalar output.
char *mp_backward(at::Tensor *const *outputs, at::Tensor *const *gradients, size_t count, bool retain) {
  return guarded([&] {
    OwnThread own_thread;
    torch::autograd::backward(list(outputs, count), list(gradients, count), retain);
  });
}

char *mp_on_gradient_ready(at::Tensor *leaf, void *context) {
  auto hook = std::make_unique<ReadyHook>(context);
  return guarded([&] {
    TORCH_CHECK(leaf->is_leaf() && leaf->requires_grad(), "a gradient-ready hook needs a leaf that requires a gradient");
    // Makes the accumulator now, so that the hook has a node to sit on.
    torch::autograd::impl::grad_accumulator(*leaf);
    torch::autograd::impl::set_post_acc_grad_hooks(*leaf, std::move(hook));
  });
}

char *mp_fused_adamw(at::Tensor *const *parameters, at::Tensor *const *gradients, at::Tensor *const *first,
                     at::Tensor *const *second, size_t count, double step, double lr, double beta1, double beta2,
                     double decay, double epsilon) {
  return guarded([&] {
    at::NoGradGuard no_gradients;
    auto values = list(parameters, count);
    std::vector<at::Tensor> steps;
    for (const auto &value : values) steps.push_back(at::full({}, step, value.options().dtype(at::kFloat)));
    at::_fused_adamw_(values, list(gradients, count), list(first, count), list(second, count), {}, steps, lr, beta1,
                      beta2, decay, epsilon, /*amsgrad=*/false, /*maximize=*/false);
  });
}

char *mp_generator_state(bool on_accelerator, at::Tensor **state) {
  return guarded([&] {
    c10::Device device(on_accelerator ? accelerator() : c10::DeviceType::CPU);
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    *state = new at::Tensor(generator.get_state());
  });
}

char *mp_set_generator_state(bool on_accelerator, at::Tensor *state) {
  return guarded([&] {
    c10::Device device(on_accelerator ? accelerator() : c10::DeviceType::CPU);
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard<std::mutex> lock(generator.mutex());
    generator.set_state(*state);
  });
}

bool mp_has_accelerator() { return at::accelerator::getAccelerator(false).has_value(); }

void mp_host_memory(int64_t *current, int64_t *peak) { HOST->statistics(current, peak); }

void mp_reset_host_peak() { HOST->reset_peak(); }

char *mp_memory(int device, int64_t *current, int64_t *peak, int64_t *reserved) {
  return guarded([&] {
    accelerator();
    auto stats = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    *current = stats.allocated_bytes[0].current;
    *peak = stats.allocated_bytes[0].peak;
    *reserved = stats.reserved_bytes[0].peak;
  });
}

// What the device has free, and what the allocator holds of it beside tensors.
char *mp_free_memory(int device, int64_t *free, int64_t *idle) {
  return guarded([&] {
    accelerator();
    auto index = static_cast<c10::DeviceIndex>(device);
    auto stats = at::accelerator::getDeviceStats(index);
    *free = static_cast<int64_t>(at::accelerator::getMemoryInfo(index).first);
    *idle = stats.reserved_bytes[0].current - stats.allocated_bytes[0].current;
  });
}

char *mp_select_device(int device) {
  return guarded([&] {
    accelerator();
    at::accelerator::setDeviceIndex(static_cast<c10::DeviceIndex>(device));
  });
}

char *mp_synchronize_device(int device) {
  return guarded([&] {
    accelerator();
    at::accelerator::synchronizeDevice(static_cast<c10::DeviceIndex>(device));
  });
}

char *mp_numerics(bool deterministic, bool tf32) {
  return guarded([&] {
    accelerator();
    auto &context = at::globalContext();
    context.setAllowTF32CuBLAS(tf32);
    context.setAllowTF32CuDNN(tf32);
    // Sums of bfloat16 products stay in single precision when a product is split, too.
    context.setAllowBF16ReductionCuBLAS(false);
    // cuBLAS reads it when its first handle is made; what the user has set stays.
    if (deterministic) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    context.setDeterministicAlgorithms(deterministic, /*warn_only=*/false);
    context.setDeterministicCuDNN(deterministic);
    context.setBenchmarkCuDNN(false);
    // Fresh memory is always written before it is read here: filling it would be work for nothing.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

// Bytes of the host that the device copies to and from by itself.
char *mp_pinned(int64_t bytes, at::Tensor **made) {
  return guarded([&] {
    accelerator();
    *made = new at::Tensor(at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true)));
  });
}

// Queued on the stream; the host goes on where its side of the copy is page-locked.
char *mp_copy(at::Tensor *to, at::Tensor *from, int device, int64_t id) {
  return guarded([&] {
    at::NoGradGuard no_gradients;
    c10::StreamGuard queue(stream_of(device, id));
    to->copy_(*from, /*non_blocking=*/true);
  });
}

char *mp_flash_forward(at::Tensor *q, at::Tensor *k, at::Tensor *v, bool causal, at::Tensor **y, at::Tensor **log_sum) {
  return guarded([&] {
    at::NoGradGuard no_gradients;
    auto all = at::_scaled_dot_product_flash_attention(*q, *k, *v, /*dropout_p=*/0.0, causal);
    *y = new at::Tensor(std::get<0>(all));
    *log_sum = new at::Tensor(std::get<1>(all));
  });
}

char *mp_flash_backward(at::Tensor *dy, at::Tensor *q, at::Tensor *k, at::Tensor *v, at::Tensor *y, at::Tensor *log_sum,
                        bool causal, at::Tensor **dq, at::Tensor **dk, at::Tensor **dv) {
  return guarded([&] {
    at::NoGradGuard no_gradients;
    // The state of a generator that nothing is drawn from, as the forward leaves it: made, and never read.
    auto state = q->options().dtype(at::kUInt64);
    auto all = at::_scaled_dot_product_flash_attention_backward(
        *dy, *q, *k, *v, *y, *log_sum, /*cum_seq_q=*/at::Tensor(), /*cum_seq_k=*/at::Tensor(), q->size(2), k->size(2),
        /*dropout_p=*/0.0, causal, at::empty({2}, state), at::empty({}, state));
    *dq = new at::Tensor(std::get<0>(all));
    *dk = new at::Tensor(std::get<1>(all));
    *dv = new at::Tensor(std::get<2>(all));
  });
}

char *mp_reset_peak(int device) {
  return guarded([&] {
    accelerator();
    at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(device));
  });
}

// Streams travel as libtorch's own three numbers.
char *mp_stream_from_pool(int device, bool high_priority, int64_t *id) {
  return guarded([&] {
    auto type = accelerator();
    c10::impl::VirtualGuardImpl implementation(type);
    auto stream = implementation.getStreamFromGlobalPool(
        c10::Device(type, static_cast<c10::DeviceIndex>(device)), high_priority);
    *id = stream.id();
  });
}

char *mp_current_stream(int device, int64_t *id) {
  return guarded([&] {
    accelerator();
    *id = at::accelerator::getCurrentStream(static_cast<c10::DeviceIndex>(device)).id();
  });
}

char *mp_set_current_stream(int device, int64_t id) {
  return guarded([&] { at::accelerator::setCurrentStream(stream_of(device, id)); });
}

char *mp_synchronize_stream(int device, int64_t id) {
  return guarded([&] { stream_of(device, id).synchronize(); });
}

char *mp_native_stream(int device, int64_t id, void **handle) {
  return guarded([&] { *handle = stream_of(device, id).native_handle(); });
}

char *mp_record_stream(at::Tensor *tensor, int device, int64_t id) {
  return guarded([&] { tensor->record_stream(stream_of(device, id)); });
}

char *mp_event_create(bool timed, void **event) {
  return guarded([&] {
    // The device's own default is an event that takes the time; libtorch's is one that does not.
    *event = new c10::Event(accelerator(), timed ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT);
  });
}

char *mp_event_record(void *event, int device, int64_t id) {
  return guarded([&] { static_cast<c10::Event *>(event)->record(stream_of(device, id)); });
}

char *mp_event_block(void *event, int device, int64_t id) {
  return guarded([&] { static_cast<c10::Event *>(event)->block(stream_of(device, id)); });
}

char *mp_event_query(void *event, bool *done) {
  return guarded([&] { *done = static_cast<c10::Event *>(event)->query(); });
}

char *mp_event_elapsed(void *from, void *to, double *milliseconds) {
  return guarded([&] { *milliseconds = static_cast<c10::Event *>(from)->elapsedTime(*static_cast<c10::Event *>(to)); });
}

char *mp_event_synchronize(void *event) {
  return guarded([&] { static_cast<c10::Event *>(event)->synchronize(); });
}

void mp_event_free(void *event) { delete static_cast<c10::Event *>(event); }

// Memory that libtorch frees within a step is wanted again in the next one: giving it back to the system costs a page
// fault for each of its pages.
void mp_keep_freed_memory() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, -1);
  mallopt(M_TOP_PAD, 64 << 20);
#endif
}

}  // extern "C"

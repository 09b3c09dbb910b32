// Scores a bundle's golden images against its golden texts with ONNX Runtime alone, and compares the logits with
// PyTorch's. docs/graphs.md explains every step.
//
//     unzip bundle/golden.npz -d golden
//     g++ -std=c++17 score.cpp -I "$ORT/include" -L "$ORT/lib" -Wl,-rpath,"$ORT/lib" -lonnxruntime -o score
//     ./score bundle golden

#include <onnxruntime_cxx_api.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

using Tensors = std::map<std::string, Ort::Value>;

// A .npy file of float32 or int64 in C order, as golden.npz holds them.
struct Array {
  std::vector<char> bytes;
  std::vector<int64_t> shape;
  bool is_float = false;

  explicit Array(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const bool is_array = content.size() >= 10 && std::string(&content[1], 5) == "NUMPY";
    if (!is_array) throw std::runtime_error(path + " is no .npy file");
    const size_t length = static_cast<unsigned char>(content[8]) + 256 * static_cast<unsigned char>(content[9]);
    const std::string header(&content[10], length);
    is_float = header.find("'<f4'") != std::string::npos;
    if (!is_float && header.find("'<i8'") == std::string::npos) throw std::runtime_error(path + " has another type");
    if (header.find("True") != std::string::npos) throw std::runtime_error(path + " is in Fortran order");
    size_t at = header.find('(') + 1;
    const size_t end = header.find(')', at);
    while (at < end) {
      shape.push_back(std::stoll(header.substr(at)));
      at = header.find(',', at);
      at = at == std::string::npos ? end : header.find_first_not_of(", ", at);
    }
    bytes.assign(content.begin() + 10 + static_cast<std::ptrdiff_t>(length), content.end());
  }

  // A tensor that reads this array's memory, which must outlive it.
  Ort::Value tensor() {
    const auto cpu = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto type = is_float ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    return Ort::Value::CreateTensor(cpu, bytes.data(), bytes.size(), shape.data(), shape.size(), type);
  }
};

// One graph of a bundle. Inputs and outputs go by name: what one graph makes, the next one reads.
class Graph {
 public:
  Graph(Ort::Env& env, const std::string& path) : session_(env, path.c_str(), Ort::SessionOptions()) {}

  // Reads its inputs from the tensors, and adds its outputs to them.
  void run(Tensors& tensors) {
    Ort::AllocatorWithDefaultOptions allocator;
    Ort::IoBinding binding(session_);
    std::vector<std::string> outputs;
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {
      const auto name = session_.GetInputNameAllocated(i, allocator);
      binding.BindInput(name.get(), tensors.at(name.get()));
    }
    for (size_t i = 0; i < session_.GetOutputCount(); ++i) {
      outputs.emplace_back(session_.GetOutputNameAllocated(i, allocator).get());
      binding.BindOutput(outputs.back().c_str(), Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault));
    }
    session_.Run(Ort::RunOptions(), binding);
    std::vector<Ort::Value> values = binding.GetOutputValues();
    for (size_t i = 0; i < outputs.size(); ++i) tensors.insert_or_assign(outputs[i], std::move(values[i]));
  }

 private:
  Ort::Session session_;
};

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: score BUNDLE GOLDEN\n");
    return 2;
  }
  const std::string bundle = std::string(argv[1]) + "/", golden = std::string(argv[2]) + "/";
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "score");
    Graph image(env, bundle + "image.onnx"), text(env, bundle + "text.onnx"), scorer(env, bundle + "scorer.onnx");
    Array features(golden + "features.npy");  // [I, R, D] float32
    Array tokens(golden + "tokens.npy");      // [T, N] int64, padded with 0
    Array lengths(golden + "lengths.npy");    // [T] int64, both markers counted
    Array expected(golden + "logits.npy");    // [I, T] float32, by PyTorch

    Tensors tensors;
    tensors.emplace("features", features.tensor());
    tensors.emplace("tokens", tokens.tensor());
    tensors.emplace("lengths", lengths.tensor());
    image.run(tensors);   // once per image: adds the image's tensors, [I, ...] each
    text.run(tensors);    // once per text: adds the text's tensors, [T, ...] each
    scorer.run(tensors);  // every image against every text: adds logits [I, T]

    const float* logits = tensors.at("logits").GetTensorData<float>();
    const float* by_torch = reinterpret_cast<const float*>(expected.bytes.data());
    const int64_t images = expected.shape.at(0), texts = expected.shape.at(1);
    float largest = 0;
    for (int64_t i = 0; i < images; ++i) {
      for (int64_t t = 0; t < texts; ++t) {
        const float logit = logits[i * texts + t];  // its score is 1 / (1 + exp(-logit)) if the activation is sigmoid
        std::printf("%s%.6f", t ? " " : "", logit);
        largest = std::fmax(largest, std::fabs(logit - by_torch[i * texts + t]));
      }
      std::printf("\n");
    }
    std::fprintf(stderr, "largest difference from PyTorch: %.1e\n", largest);
    return largest <= 1e-4f ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}

// Python names of the shared-memory communicator. Everything that may wait lets other threads run.
#include "native/bindings.h"
#include "native/shm_communicator.h"

namespace py = pybind11;

namespace lepton {
namespace {

using shm::Communicator;

// A rank's own region of a segment as a buffer; torch.frombuffer keeps it, and it the mapping.
struct Region {
  std::shared_ptr<shm::Mapping> mapping;
  uint8_t* data;
  size_t bytes;
};

void* address(uintptr_t at) { return reinterpret_cast<void*>(at); }
BucketType type_of(int type) { return static_cast<BucketType>(type); }
shm::Op op_of(int op) { return static_cast<shm::Op>(op); }

std::unique_ptr<Communicator> make(int rank, const std::vector<std::pair<pid_t, uint64_t>>& pids,
                                   std::vector<int> names, int fd, size_t stage_bytes,
                                   double timeout, double spin, uintptr_t kernels) {
  std::vector<shm::Member> members;
  for (const auto& [pid, start_time] : pids) members.push_back({pid, start_time});
  return std::make_unique<Communicator>(rank, std::move(members), std::move(names), fd, stage_bytes,
                                        timeout, spin,
                                        reinterpret_cast<const BucketKernels* (*)()>(kernels));
}

}  // namespace

void register_shm_communicator(py::module_& module) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::register_exception<shm::ShmError>(module, "ShmError", PyExc_RuntimeError);
  module.def("process_start_time", &shm::process_start_time);
  module.def("shm_control_bytes", &Communicator::control_bytes);

  py::class_<Region>(module, "ShmRegion", py::buffer_protocol()).def_buffer([](Region& region) {
    return py::buffer_info(region.data, static_cast<py::ssize_t>(region.bytes), false);
  });

  py::class_<Communicator>(module, "ShmCommunicator")
      .def(py::init(&make), release())
      .def("add_segment", &Communicator::add_segment, release())
      .def("drop_segment", &Communicator::drop_segment)
      .def("region",
           [](const Communicator& self, int segment) {
             const shm::Segment& s = self.segment(segment);
             return Region{s.mapping, self.region(segment, self.rank()), s.region_bytes};
           })
      .def(
          "start_all_reduce",
          [](Communicator& self, uintptr_t data, int64_t count, int type, int op, int64_t squared) {
            return self.start_all_reduce(address(data), count, type_of(type), op_of(op), squared);
          },
          release())
      .def(
          "start_outer",
          [](Communicator& self, uintptr_t product, uintptr_t left, uintptr_t right, int64_t rows,
             int64_t columns, int64_t terms, float divisor, uintptr_t contributed, int type) {
            return self.start_outer({address(product), address(left), address(right), rows, columns,
                                     terms, divisor, static_cast<float*>(address(contributed))},
                                    type_of(type));
          },
          release())
      .def("progress", &Communicator::progress, release())
      .def("wait", &Communicator::wait, release())
      .def("squares", &Communicator::squares)
      .def("slice", &Communicator::slice)
      .def(
          "gather_slices",
          [](Communicator& self, uintptr_t bucket, int64_t count, int type) {
            self.gather_slices(address(bucket), count, type_of(type));
          },
          release())
      .def(
          "all_reduce",
          [](Communicator& self, uintptr_t data, int64_t count, int type, int op) {
            self.all_reduce(address(data), count, type_of(type), op_of(op));
          },
          release())
      .def(
          "reduce_scatter",
          [](Communicator& self, uintptr_t in, uintptr_t out, int64_t count, int type, int op) {
            self.reduce_scatter(address(in), address(out), count, type_of(type), op_of(op));
          },
          release())
      .def(
          "all_gather",
          [](Communicator& self, uintptr_t in, uintptr_t out, int64_t count, int type) {
            self.all_gather(address(in), address(out), count, type_of(type));
          },
          release())
      .def(
          "broadcast",
          [](Communicator& self, uintptr_t data, int64_t count, int type, int root) {
            self.broadcast(address(data), count, type_of(type), root);
          },
          release())
      .def("barrier", &Communicator::barrier, release())
      .def("close", &Communicator::close)
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def_property_readonly("seconds_waited", &Communicator::seconds_waited)
      .def_property_readonly("seconds_worked", &Communicator::seconds_worked);
}

}  // namespace lepton
